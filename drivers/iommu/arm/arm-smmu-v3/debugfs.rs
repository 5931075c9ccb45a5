// SPDX-License-Identifier: GPL-2.0

//! Statistics of a command queue, for people: `/sys/kernel/debug/<SMMU>/cmdq`.

use kernel::{
    debugfs::Scope,
    fmt,
    prelude::*,
    str::CStr,
    sync::{
        atomic::Relaxed,
        Arc, //
    }, //
};

use super::{
    cmdq::Cmdq,
    hw::Hw, //
};

/// Shows what a command queue has done so far, a number a line.
///
/// * `batches`: how often commands were put into the queue.
/// * `commands`: how many, without the `CMD_SYNC`s that were put behind them.
/// * `syncs`: how many those were.
/// * `ill`, `abt`, `atc_inv_sync`, `other_errors`: errors that the SMMU has raised, by their code.
/// * `serviced_inline`: how many of them were handled by a CPU that was waiting for the queue, not
///   by the interrupt handler.
/// * `replays`: `CMD_ATC_INV`s that were issued again on their own after a time-out.
/// * `refused`: `CMD_ATC_INV`s of guests that were refused, as their device has not answered
///   before.
/// * `timeouts`: waits that timed out.
///
/// They are not of the same instant if the queue is in use.
fn show<H: Hw>(cmdq: &Arc<Cmdq<H>>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (commands, syncs, batches) = cmdq.counts();
    let stats = &cmdq.stats;
    let [none, ill, abt, atc_inv_sync, other] = stats.errors.each_ref();

    for (name, value) in [
        ("batches", batches),
        ("commands", commands),
        ("syncs", syncs),
        ("ill", ill.load(Relaxed)),
        ("abt", abt.load(Relaxed)),
        ("atc_inv_sync", atc_inv_sync.load(Relaxed)),
        ("other_errors", none.load(Relaxed) + other.load(Relaxed)),
        ("serviced_inline", stats.inline.load(Relaxed)),
        ("replays", stats.replays.load(Relaxed)),
        ("refused", stats.refused.load(Relaxed)),
        ("timeouts", stats.timeouts.load(Relaxed)),
    ] {
        writeln!(f, "{name} {value}")?;
    }
    Ok(())
}

/// Makes the directory `name` with the file. Both are there until the value is dropped.
pub(crate) fn scope<'a, H: Hw + Send + Sync + 'static>(
    cmdq: Arc<Cmdq<H>>,
    name: &'a CStr,
) -> impl PinInit<Scope<Arc<Cmdq<H>>>> + 'a {
    Scope::dir(cmdq, name, |cmdq, dir| {
        dir.read_callback_file(c"cmdq", cmdq, &show::<H>);
    })
}
