use super::Sharding;
use crate::distributed::tests::with_ranks;
use crate::ops::adamw::{Flat, Hyper, adamw, global_norm};
use crate::ops::cuda::{emulated, is_emulated};
use crate::ops::flat::Range;
use crate::ops::squares::{LastUpdate, squares};
use candle_core::{DType, Device, Tensor};

/// Sums of squares of ranges that the cuts between shards go through, and the norm: on the CPU and with the kernels of a GPU.
fn assert_sums_are_whole(n: usize, moments: DType) {
    let rule = LastUpdate { keep: 0.99, lr: 1e-2, inverse_correction1: 1.9, inverse_sqrt_correction2: 1.7, eps: 1e-8 };
    let buffer = |seed: usize, dtype: DType| {
        let values = (0..n).map(|i| ((i * 7 + seed * 131) as f32 * 0.37).sin().abs() * 10f32.powi((i % 5) as i32 - 2));
        Tensor::from_iter(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    };
    let flats = [buffer(0, DType::F32), buffer(1, DType::F32), buffer(2, moments), buffer(3, moments)];
    let ranges = [(0, n / 3, true), (n / 3, 5, false), (n / 3 + 5, n - n / 3 - 5, true)];
    let ranges = ranges.map(|(start, len, decay)| Range { start, len, decay });
    let whole = squares(flats.each_ref(), &ranges, &rule).unwrap();
    let norm = global_norm(&flats[1]).unwrap();
    let on_gpu = is_emulated();
    for ranks in [2, 4] {
        let sums = with_ranks(ranks, |group| {
            let of_rank = || {
                let sharding = Sharding::new(&group, &flats[1]);
                let own = flats.each_ref().map(|flat| sharding.own_part(flat).unwrap());
                assert!(sharding.own().len() < n, "nothing is cut");
                (sharding.squares(own.each_ref(), &ranges, &rule).unwrap(), sharding.global_norm(&flats[1]).unwrap())
            };
            if on_gpu { emulated(of_rank) } else { of_rank() }
        });
        assert!(sums.iter().all(|sums| *sums == (whole.clone(), norm)), "{ranks} ranks");
    }
}

#[test]
fn sums_of_squares_do_not_depend_on_the_cuts() {
    assert_sums_are_whole(500_000, DType::F32);
    emulated(|| assert_sums_are_whole((5 << 20) + 77_777, DType::BF16));
}

/// A shard of a GPU's buffers is updated as it is within the whole, roundings of moments included.
#[test]
fn a_part_is_updated_like_the_whole() {
    let n = 5000;
    let buffer = |seed: usize, dtype: DType| {
        let values = (0..n).map(|i| ((i * 7 + seed * 131) as f32 * 0.37).sin().abs());
        Tensor::from_iter(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    };
    let state = || [0, 1, 2, 3].map(|seed| buffer(seed, if seed < 2 { DType::F32 } else { DType::BF16 }));
    let hyper =
        Hyper { lr: 1e-2, betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.1, t: 7, clip: 0.3, rounding: Some(77) };
    let update = |state: &[Tensor; 4], parts: &[std::ops::Range<usize>]| {
        for part in parts {
            let own = state.each_ref().map(|flat| flat.narrow(0, part.start, part.len()).unwrap());
            let [param, grad, exp_avg, exp_avg_sq] = own.each_ref();
            let ranges = [Range { start: 0, len: part.len(), decay: true }];
            adamw(&Flat { param, grad, exp_avg, exp_avg_sq, copy: None, first: part.start }, &ranges, &hyper).unwrap();
        }
        state.each_ref().map(|flat| flat.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap())
    };
    let whole = 0..n;
    let parts = [0..2048, 2048..n];
    let (whole, parts) = emulated(|| (update(&state(), std::slice::from_ref(&whole)), update(&state(), &parts)));
    assert!(whole == parts);
    assert!(whole[2] != state()[2].to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap(), "nothing is updated");
}
