// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A serial port as the Server Base System Architecture has it: the part of a PL011 that every arm64 kernel
//! can drive. (`vm-superio` has a 16550, for which the kernel under test has no driver.)

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::bus::{Device, Line, put, value};

const DR: u64 = 0x00;
const FR: u64 = 0x18;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;

const FR_RXFE: u32 = 1 << 4;
const FR_TXFE: u32 = 1 << 7;
const INT_RX: u32 = 1 << 4;
const INT_TX: u32 = 1 << 5;
/// Received, and not read for some time.
const INT_RT: u32 = 1 << 6;

/// What the guest writes is lost if that fails: it has no way to know.
type Output = Box<dyn Write + Send>;

struct State {
    received: VecDeque<u8>,
    ris: u32,
    imsc: u32,
    output: Output,
}

/// The serial port.
pub struct Uart {
    state: Mutex<State>,
    line: Line,
}

impl Uart {
    /// One that writes there, and has this interrupt.
    pub fn new(output: Output, line: Line) -> Arc<Self> {
        Arc::new(Uart {
            state: Mutex::new(State {
                received: VecDeque::new(),
                ris: 0,
                imsc: 0,
                output,
            }),
            line,
        })
    }

    /// Has the guest receive what comes from there, until its end.
    pub fn feed(self: &Arc<Self>, mut input: impl Read + Send + 'static) {
        let uart = self.clone();
        thread::spawn(move || {
            let mut byte = [0];
            while matches!(input.read(&mut byte), Ok(1)) {
                uart.receive(byte[0]);
            }
        });
    }

    fn receive(&self, byte: u8) {
        let mut state = self.state.lock().unwrap();
        state.received.push_back(byte);
        state.ris |= INT_RX | INT_RT;
        self.update(&state);
    }

    fn update(&self, state: &State) {
        (self.line)(state.ris & state.imsc != 0);
    }
}

impl Device for Uart {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.state.lock().unwrap();
        let word = match offset {
            DR => {
                let byte = state.received.pop_front().unwrap_or(0);
                if state.received.is_empty() {
                    state.ris &= !(INT_RX | INT_RT);
                }
                self.update(&state);
                byte.into()
            }
            FR if state.received.is_empty() => FR_TXFE | FR_RXFE,
            FR => FR_TXFE,
            IMSC => state.imsc,
            RIS => state.ris,
            MIS => state.ris & state.imsc,
            _ => 0,
        };
        put(data, word.into());
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let word = value(data) as u32;
        let mut state = self.state.lock().unwrap();
        match offset {
            DR => {
                let output = &mut state.output;
                let _ = output
                    .write_all(&[word as u8])
                    .and_then(|()| output.flush());
                state.ris |= INT_TX;
            }
            IMSC => state.imsc = word,
            // What is still to be read is told again.
            ICR => state.ris &= !word,
            _ => return,
        }
        self.update(&state);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(buf)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn both_directions() {
        let level = Arc::new(AtomicBool::new(false));
        let sink = Sink::default();
        let line = level.clone();
        let line = move |set| line.store(set, Ordering::Relaxed);
        let uart = Uart::new(Box::new(sink.clone()), Box::new(line));
        let raised = || level.load(Ordering::Relaxed);
        let read = |offset| {
            let mut data = [0; 4];
            uart.read(offset, &mut data);
            value(&data) as u32
        };
        let write = |offset, word: u32| uart.write(offset, &word.to_le_bytes());

        write(DR, 'o'.into());
        write(DR, 'k'.into());
        assert_eq!(*sink.0.lock().unwrap(), b"ok");
        assert!(!raised());
        write(IMSC, INT_TX | INT_RX);
        assert!(raised());
        assert_eq!(read(MIS), INT_TX);
        write(ICR, INT_TX);
        assert!(!raised());

        assert_eq!(read(FR), FR_TXFE | FR_RXFE);
        uart.receive(b'a');
        uart.receive(b'b');
        assert!(raised());
        assert_eq!((read(FR), read(RIS)), (FR_TXFE, INT_RX | INT_RT));
        assert_eq!(read(DR), u32::from(b'a'));
        assert!(raised());
        assert_eq!(read(DR), u32::from(b'b'));
        assert!(!raised());
        assert_eq!(read(FR), FR_TXFE | FR_RXFE);
    }
}
