//! Copies of whole tensors: from a device into the memory of the machine, and on a device.

use candle_core::{Device, Error, Result, Tensor, bail};

/// `t` in the memory of the machine, when all of it is there.
///
/// # Errors
/// Those of the device, also of what was queued before.
pub fn to_host(t: &Tensor) -> Result<Tensor> {
    let host = t.to_device(&Device::Cpu)?;
    if !t.device().is_cpu() {
        // The copy is queued and need not be waited for: NVIDIA says no more than that one to pageable memory "might be synchronous".
        t.device().synchronize().map_err(|error| {
            Error::Msg(format!("{error} (with LLAMA_LITE_SYNC_LAUNCHES=1 the launch is named that has failed)"))
        })?;
    }
    Ok(host)
}

/// Elements that one copy on a device moves. candle's counts them in 32 bits there: of more it would copy the remainder alone.
const MOST_AT_ONCE: usize = 1 << 30;

/// Copies the elements of `from` over those of `to`: flat tensors of one length and type on one device, which share no storage.
///
/// # Errors
/// Those of the device, and tensors that differ.
pub(crate) fn copy_flat(from: &Tensor, to: &Tensor) -> Result<()> {
    copy_in_pieces(from, to, MOST_AT_ONCE)
}

fn copy_in_pieces(from: &Tensor, to: &Tensor, most: usize) -> Result<()> {
    let len = to.dims1()?;
    if from.dims1()? != len {
        bail!("a copy of {} elements over {len}", from.dims1()?);
    }
    for start in (0..len).step_by(most) {
        to.slice_set(&from.narrow(0, start, most.min(len - start))?, 0, start)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_in_pieces_are_whole() {
        let from = Tensor::arange(0f32, 10.0, &Device::Cpu).unwrap();
        for most in [1, 3, 5, 10, 11] {
            let to = Tensor::zeros(10, candle_core::DType::F32, &Device::Cpu).unwrap();
            copy_in_pieces(&from, &to, most).unwrap();
            assert_eq!(to.to_vec1::<f32>().unwrap(), from.to_vec1::<f32>().unwrap(), "{most} at once");
        }
        let short = from.narrow(0, 0, 4).unwrap();
        assert!(copy_flat(&short, &from).unwrap_err().to_string().contains("4 elements over 10"));
    }
}
