// SPDX-License-Identifier: GPL-2.0

//! Attributes of the kernel that mean nothing in user space.

use proc_macro::{Delimiter, Group, TokenStream, TokenTree};

/// A module with tests, which cargo finds by their own attributes.
#[proc_macro_attribute]
pub fn kunit_tests(_: TokenStream, module: TokenStream) -> TokenStream {
    module
}

/// A struct with fields that must not be moved. Here, they are made in their place by the compiler,
/// and nothing points to them.
#[proc_macro_attribute]
pub fn pin_data(_: TokenStream, item: TokenStream) -> TokenStream {
    without_pin(item)
}

/// Leaves out `#[pin]`.
fn without_pin(tokens: TokenStream) -> TokenStream {
    let mut left: Vec<TokenTree> = Vec::new();

    for token in tokens {
        match token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                let fields = without_pin(group.stream());
                left.push(Group::new(Delimiter::Brace, fields).into());
            }
            TokenTree::Group(group) if group.to_string() == "[pin]" => {
                left.pop();
            }
            token => left.push(token),
        }
    }
    left.into_iter().collect()
}
