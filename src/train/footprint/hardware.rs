//! What a run trains on, as far as its memory goes: this machine, or a GPU that need not be here.

use super::RanksHere;
use crate::ops::device::{self, GpuModel};
use crate::runtime::memory;
use candle_core::Device;
use std::sync::OnceLock;

#[derive(Clone, Copy, Debug)]
pub struct Hardware {
    pub is_gpu: bool,
    /// Whether attention is cuDNN's, which needs a workspace.
    pub has_cudnn: bool,
    /// Bytes that training may take; none where the system does not say. Of a GPU, those of one rank.
    pub room: Option<u64>,
    pub ranks: RanksHere,
}

impl Hardware {
    /// The device of this process, and the memory that was free when it was chosen or first asked.
    pub fn here(device: &Device, ranks: RanksHere) -> Self {
        static ROOM: OnceLock<Option<u64>> = OnceLock::new();
        let room = *ROOM.get_or_init(|| device::memory().map(usable_of_gpu).or_else(memory::available));
        Self { is_gpu: !device.is_cpu(), has_cudnn: cfg!(feature = "cudnn"), room, ranks }
    }

    /// `gpu` for each of `ranks`, with a program that uses cuDNN.
    pub fn of_gpu(gpu: &GpuModel, ranks: RanksHere) -> Self {
        Self { is_gpu: true, has_cudnn: true, room: Some(usable_of_gpu(gpu.memory)), ranks }
    }

    /// The same with `bytes` to train in.
    pub fn with_room(self, bytes: u64) -> Self {
        Self { room: Some(bytes), ..self }
    }

    /// Whether training may take `bytes` there.
    pub fn fits(&self, bytes: u64) -> bool {
        self.room.is_none_or(|room| bytes <= room)
    }
}

/// A GPU's allocator cannot use the last of its memory.
fn usable_of_gpu(free: u64) -> u64 {
    free / 20 * 19
}
