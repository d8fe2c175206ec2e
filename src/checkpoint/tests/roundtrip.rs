//! What is saved comes back, bit for bit, and is what others expect to read.

use super::super::names;
use super::super::tensors::{header, write_values};
use super::*;
use crate::checkpoint::{Dtype, step_name, verify};

#[test]
fn checkpoint_comes_back_bit_for_bit() {
    for tied in [false, true] {
        let run = tempfile::tempdir().unwrap();
        let toy = Toy::of(toy_model(tied), 7);
        let dir = toy.save(run.path()).unwrap();
        assert_eq!(dir, run.path().join("checkpoints").join("step-00000007"));
        let expected = [
            "config.json",
            "generation_config.json",
            "manifest.json",
            "model.safetensors",
            "optimizer.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "trainer_state.json",
        ];
        assert_eq!(listing(&dir), expected);
        let manifest = verify(&dir).unwrap();
        assert_eq!((manifest.step, manifest.tokens, manifest.files.len()), (7, 700, 7));

        let opened = Opened::open(run.path()).unwrap();
        assert_eq!(
            (&opened.dir, &opened.model, opened.bos, opened.eos.as_slice()),
            (&dir, &toy.model, None, &[19][..])
        );
        toy.assert_weights(&opened);
        let mut moments = Vec::new();
        opened.read_optimizer_state(&mut |name, shape, data| collect(&mut moments, name, shape, data)).unwrap();
        assert_same_bits(&moments, &toy.moments);
        assert_eq!(opened.trainer_state().unwrap(), toy.contents().trainer_state);
        assert_eq!(std::fs::read(dir.join("tokenizer.json")).unwrap(), b"{\"toy\":true}");
    }
}

#[test]
fn odd_values_keep_their_bits() {
    let run = tempfile::tempdir().unwrap();
    let mut toy = Toy::at(1);
    let odd = [0.0, -0.0, f32::MIN_POSITIVE, 1e-45, -1e-45, f32::MAX, f32::MIN, 1.0_f32.next_up()];
    toy.weights[0].2[..odd.len()].copy_from_slice(&odd);
    toy.save(run.path()).unwrap();
    toy.assert_weights(&Opened::open(run.path()).unwrap());
}

#[test]
fn safetensors_crate_reads_the_files_whole() {
    let run = tempfile::tempdir().unwrap();
    let toy = Toy::at(3);
    let dir = toy.save(run.path()).unwrap();
    for (file, tensors) in [(names::WEIGHTS, &toy.weights), (names::OPTIMIZER, &toy.moments)] {
        let bytes = std::fs::read(dir.join(file)).unwrap();
        let (header_len, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header_len % 8, 0, "the data is not aligned");
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.len(), tensors.len());
        for (name, shape, data) in tensors {
            let view = read.tensor(name).unwrap();
            assert_eq!((view.dtype(), view.shape()), (safetensors::Dtype::F32, shape.as_slice()));
            assert_eq!(view.data(), data.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
        }
    }
}

#[test]
fn large_weights_are_sharded() {
    let run = tempfile::tempdir().unwrap();
    let toy = Toy::at(5);
    let limit = 1500;
    let keep = Retention { keep: 1, keep_every: 0, log_spaced: false };
    let dir = save_sharded(run.path(), 1, &toy.contents(), keep, limit).unwrap();
    assert!(!dir.join(names::WEIGHTS).exists());
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join(names::INDEX)).unwrap()).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.len(), toy.weights.len());
    let total: usize = toy.weights.iter().map(|(_, _, data)| data.len() * 4).sum();
    assert_eq!(index["metadata"]["total_size"], total);
    let mut files: Vec<&str> = map.values().map(|file| file.as_str().unwrap()).collect();
    files.dedup();
    assert!(files.len() > 2, "{files:?}");
    assert_eq!(files[0], format!("model-00001-of-{:05}.safetensors", files.len()));
    for file in &files {
        let bytes = std::fs::read(dir.join(file)).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let size: usize = read.iter().map(|(_, view)| view.data().len()).sum();
        assert!(size <= limit || read.len() == 1, "{file} holds {size} bytes");
    }
    verify(&dir).unwrap();
    toy.assert_weights(&Opened::open(&dir).unwrap());
}

#[test]
fn saving_a_step_again_replaces_it() {
    let run = tempfile::tempdir().unwrap();
    let dir = Toy::at(4).save(run.path()).unwrap();
    let mut other = Toy::at(9);
    other.step = 4;
    assert_eq!(other.save(run.path()).unwrap(), dir);
    other.assert_weights(&Opened::open(&dir).unwrap());
    assert_eq!(listing(&run.path().join("checkpoints")), [step_name(4)]);
}

#[test]
fn non_finite_values_are_never_published() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for moment in [false, true] {
            let run = tempfile::tempdir().unwrap();
            Toy::at(1).save(run.path()).unwrap();
            let mut toy = Toy::at(2);
            let tensor = if moment { &mut toy.moments[3] } else { &mut toy.weights[3] };
            tensor.2[5] = value;
            let name = tensor.0.clone();
            let error = toy.save_keeping(run.path(), 1).unwrap_err();
            assert_eq!(exit_of(&error), Exit::Diverged);
            assert!(error.to_string().contains(&name) && error.to_string().contains("element 5"), "{error}");
            assert_eq!(listing(&run.path().join("checkpoints")), [step_name(1)]);
        }
    }
}

#[test]
fn what_would_not_load_is_not_saved() {
    let run = tempfile::tempdir().unwrap();
    let mut short = Toy::at(1);
    short.weights[2].2.pop();
    let mut reshaped = Toy::at(1);
    reshaped.weights[2].1.reverse();
    let mut missing = Toy::at(1);
    missing.weights.pop();
    let mut renamed = Toy::at(1);
    renamed.weights[0].0.push('x');
    for toy in [short, reshaped, missing, renamed] {
        let error = toy.save(run.path()).unwrap_err();
        assert_eq!(error.downcast_ref::<Failure>().unwrap().exit, Exit::Internal, "{error}");
    }
    let toy = Toy::at(1);
    let mut contents = toy.contents();
    contents.tokenizer_files.push(("../escape", Vec::new()));
    let keep = Retention { keep: 1, keep_every: 0, log_spaced: false };
    assert!(super::super::save(run.path(), 1, &contents, keep).unwrap_err().to_string().contains("escape"));
    assert_eq!(listing(run.path()), [] as [&str; 0]);
}

/// Saving must not need a second copy of a tensor, let alone of the model.
#[test]
fn values_are_written_in_bounded_pieces() {
    struct Pieces {
        largest: usize,
        total: usize,
    }
    impl std::io::Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.largest = self.largest.max(bytes.len());
            self.total += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let values = vec![1.0_f32; 3_000_000];
    let mut pieces = Pieces { largest: 0, total: 0 };
    write_values(&mut pieces, Path::new("x"), "t", &values, Dtype::F32).unwrap();
    assert_eq!(pieces.total, 12_000_000);
    assert!(pieces.largest <= 1 << 20, "{} bytes at once", pieces.largest);
    assert!(header(&[("t", &[usize::MAX, 2])], Dtype::F32).is_err());
}
