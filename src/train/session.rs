//! What a command has chosen for the whole of its run: the device, the console and the processes that take part.

use crate::distributed::group::ProcessGroup;
use crate::metrics::Console;
use crate::runtime::error::note;
use candle_core::Device;

/// Handed down from the command to all that trains: nothing below asks the process which device it uses. Only the free memory,
/// in `footprint`, is still that of the device of the process.
#[derive(Clone, Debug)]
pub struct Session {
    pub device: Device,
    pub console: Console,
    /// The processes that train together.
    pub group: ProcessGroup,
}

impl Session {
    /// This process alone.
    pub fn new(device: &Device, console: Console) -> Self {
        Self { device: device.clone(), console, group: ProcessGroup::one() }
    }

    /// Writes a line to stderr unless the user has asked for silence.
    pub fn note(&self, text: &str) {
        if !self.console.quiet {
            note(text);
        }
    }
}
