//! Exports that are what they should be, and exports in which something went wrong between the model and the disk.

use super::*;
use crate::checkpoint::tests::{Toy, exit_of, listing, quick_dir, toy_model};

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

fn source(dir: &Path, tied: bool) -> Opened {
    Toy::of(toy_model(tied), 3).save_keeping(&dir.join("run"), 1).unwrap();
    Opened::open(&dir.join("run")).unwrap()
}

#[test]
fn exports_of_every_dtype_are_certified() {
    for tied in [false, true] {
        let dir = quick_dir();
        let source = source(dir.path(), tied);
        for dtype in DTYPES {
            let out = dir.path().join(dtype.torch_name());
            let certificate = export(&source, &out, dtype, None).unwrap();
            assert_eq!((certificate.tokens, certificate.merged), (32, false), "as many as the context holds");
            let measured = (certificate.largest_difference, certificate.divergence);
            let said = certificate.to_string();
            if dtype == Dtype::F32 {
                assert_eq!(measured, (0.0, 0.0));
                assert!(said.ends_with("bit for bit"), "{said}");
            } else {
                assert!(measured.0 > 0.0 && measured.1 > 0.0, "{dtype:?}: {measured:?}");
                assert!(said.contains("from the f32 weights a logit differs by at most"), "{said}");
            }
        }
        let trimmed = export(&source, &dir.path().join("trimmed"), Dtype::F16, Some(17)).unwrap();
        assert_eq!(trimmed.tokens, 32);
        assert_eq!(listing(dir.path()), ["bfloat16", "float16", "float32", "run", "trimmed"]);
    }
}

/// Models of every architecture, as transformers writes them.
#[test]
fn exports_of_every_architecture_are_certified() {
    let dir = quick_dir();
    let families =
        crate::checkpoint::entries(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families")).unwrap();
    assert!(families.len() >= 10);
    for (n, family) in families.iter().enumerate() {
        let source = Opened::open(family).unwrap();
        let exact = export(&source, &dir.path().join(format!("exact-{n}")), Dtype::F32, None).unwrap();
        assert_eq!(exact.largest_difference, 0.0, "{}", family.display());
        export(&source, &dir.path().join(format!("rounded-{n}")), Dtype::Bf16, None).unwrap();
    }
}

/// The error of an export whose files `damage` has changed before they were read back; they are gone.
fn refused(dtype: Dtype, damage: impl Fn(&Path)) -> anyhow::Error {
    let dir = quick_dir();
    let source = source(dir.path(), false);
    let writer = write(&source, &source.model, &dir.path().join("out"), dtype).unwrap();
    damage(writer.txn.path());
    let error = publish(writer, &source, &source.model, dtype, |_| Vec::new()).unwrap_err();
    assert_eq!(listing(dir.path()), ["run"], "{error}");
    error
}

#[test]
fn a_single_wrong_bit_is_found_and_nothing_is_published() {
    for dtype in DTYPES {
        let error = refused(dtype, |dir| {
            let path = dir.join(names::WEIGHTS);
            let mut bytes = std::fs::read(&path).unwrap();
            // The lowest bit of the last weight, which is one of the head.
            let last = bytes.len() - dtype.size();
            bytes[last] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        });
        assert_eq!(exit_of(&error), Exit::Io);
        assert!(error.to_string().contains(LM_HEAD), "{error}");
    }
}

#[test]
fn tensors_under_each_others_names_are_found() {
    let error = refused(Dtype::Bf16, |dir| {
        let path = dir.join(names::WEIGHTS);
        let bytes = std::fs::read(&path).unwrap();
        let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = std::str::from_utf8(&bytes[8..start]).unwrap();
        let swapped = header
            .replace("0.mlp.up_proj", "?")
            .replace("1.mlp.up_proj", "0.mlp.up_proj")
            .replace('?', "1.mlp.up_proj");
        assert_ne!(swapped, header);
        std::fs::write(&path, [&bytes[..8], swapped.as_bytes(), &bytes[start..]].concat()).unwrap();
    });
    assert_eq!(exit_of(&error), Exit::Io);
    assert!(error.to_string().contains("model.layers.0.mlp.up_proj.weight"), "{error}");
}

#[test]
fn a_configuration_of_another_model_is_found() {
    let error = refused(Dtype::F32, |dir| {
        let path = dir.join(names::CONFIG);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("500000.0"));
        std::fs::write(&path, text.replace("500000.0", "10000.0")).unwrap();
    });
    assert_eq!(exit_of(&error), Exit::Io);
    assert!(error.to_string().contains(names::CONFIG), "{error}");
}

#[test]
fn a_file_that_was_cut_off_is_found() {
    let error = refused(Dtype::F32, |dir| {
        let path = dir.join(names::WEIGHTS);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    });
    let said = format!("{error:#}");
    assert!(said.contains("reading the export back") && said.contains("damaged"), "{said}");
}
