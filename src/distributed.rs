//! Several processes that train one model: ranks, and what they say to each other.
//!
//! Every rank holds the whole model and trains on its share of every step's sequences; gradients are summed in a fixed tree
//! ([`tree`]), so that the bits of a run do not depend on the number of ranks. One rank is the trivial case: nothing is sent, and the
//! code of a step is the same.
//!
//! | file | holds |
//! |---|---|
//! | `group.rs` | what ranks agree on, and failures of one that end all |
//! | `work.rs` | work that one rank does for all, or that is dealt out |
//! | `message.rs`, `exact.rs` | what a message is, and floats in it |
//! | `lanes.rs` | the sum of gradients over the lanes of one rank |
//! | `shards.rs` | which part of the flat buffers each rank owns |
//! | `sharding.rs` | what a rank does with its shard |
//! | `tree.rs` | the sum of gradients over ranks, and the gathering of weights |
//! | `mpi.rs` | the engine on CPUs |
//! | `nccl.rs` | the engine on GPUs |
//! | `meeting.rs` | how ranks find each other without MPI |
//! | `environment.rs` | what the variables of launchers say |
//! | `launch.rs` | ranks that the program starts itself |
//!
//! The engines are existing libraries, opened when the program runs. All that is asked of one is [`Collective`]: that two ranks
//! exchange bytes.

pub mod environment;
pub mod exact;
pub mod group;
pub mod lanes;
pub mod launch;
pub mod meeting;
mod message;
pub mod mpi;
pub mod nccl;
pub mod sharding;
pub mod shards;
#[cfg(test)]
pub(crate) mod tests;
pub mod tree;
mod work;

use crate::ops::transfer::to_host;
use anyhow::Result;
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// Called over and over while a rank waits for another one; its error ends the wait.
pub type WhileWaiting<'a> = &'a mut dyn FnMut() -> Result<()>;

/// What moves data between ranks. All else is made of exchanges between two of them.
pub trait Collective: Send + Sync {
    /// The number of this process, from 0.
    fn rank(&self) -> usize;

    /// How many processes there are: a power of two.
    fn ranks(&self) -> usize;

    /// Sends `send` to the rank `peer` and fills `receive` with what that rank sends meanwhile. Both know both lengths, and any may
    /// be 0.
    ///
    /// # Errors
    /// Those of the engine and of `while_waiting`. After one, the ranks can exchange nothing any more.
    fn exchange(&self, peer: usize, send: &[u8], receive: &mut [u8], while_waiting: WhileWaiting) -> Result<()>;

    /// The same with contiguous f32 tensors that share no storage. An engine that cannot reach the memory of a GPU goes through the
    /// memory of the machine.
    ///
    /// # Errors
    /// Those of [`exchange`](Self::exchange) and of the device.
    fn exchange_tensors(&self, peer: usize, send: &Tensor, receive: &Tensor, wait: WhileWaiting) -> Result<()> {
        let sent = to_host(&send.flatten_all()?)?.to_vec1::<f32>()?;
        let mut received = vec![0f32; receive.elem_count()];
        self.exchange(peer, bytemuck::cast_slice(&sent), bytemuck::cast_slice_mut(&mut received), wait)?;
        if received.is_empty() {
            return Ok(());
        }
        let received = Tensor::from_vec(received, receive.shape(), &Device::Cpu)?.to_device(receive.device())?;
        Ok(receive.slice_set(&received, 0, 0)?)
    }

    /// Parts from the other ranks, which do the same: afterwards each ends by itself. Nothing can be exchanged any more.
    fn leave(&self) {}

    /// Ends all ranks at once with the exit code `code`.
    fn abort(&self, code: i32) -> !;
}

/// An engine that is used by another one, too.
impl<C: Collective> Collective for Arc<C> {
    fn rank(&self) -> usize {
        (**self).rank()
    }

    fn ranks(&self) -> usize {
        (**self).ranks()
    }

    fn exchange(&self, peer: usize, send: &[u8], receive: &mut [u8], wait: WhileWaiting) -> Result<()> {
        (**self).exchange(peer, send, receive, wait)
    }

    fn exchange_tensors(&self, peer: usize, send: &Tensor, receive: &Tensor, wait: WhileWaiting) -> Result<()> {
        (**self).exchange_tensors(peer, send, receive, wait)
    }

    fn leave(&self) {
        (**self).leave();
    }

    fn abort(&self, code: i32) -> ! {
        (**self).abort(code)
    }
}

/// A process that is alone.
#[derive(Debug)]
pub struct OneRank;

impl Collective for OneRank {
    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> usize {
        1
    }

    fn exchange(&self, peer: usize, _: &[u8], _: &mut [u8], _: WhileWaiting) -> Result<()> {
        anyhow::bail!("there is no rank {peer}")
    }

    fn abort(&self, code: i32) -> ! {
        std::process::exit(code)
    }
}
