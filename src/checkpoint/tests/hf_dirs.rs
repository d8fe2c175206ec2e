//! Hugging Face directories: read in every form they have, refused by name where they are not plain Llama, exported.

use std::os::unix::fs::symlink;

use half::{bf16, f16};
use serde_json::{Value, json};

use super::super::hf::{EMBED, LM_HEAD, config_json};
use super::super::names;
use super::super::tensors::{TensorFile, header};
use super::*;
use crate::checkpoint::{Dtype, export, resolve};
use crate::runtime::tests::damage::{Damage, rounds};

/// The bytes of a safetensors file of these tensors.
fn encode(tensors: &[Tensor], dtype: Dtype) -> Vec<u8> {
    let specs: Vec<super::super::tensors::ShapeRef<'_>> =
        tensors.iter().map(|(name, shape, _)| (name.as_str(), shape.as_slice())).collect();
    let mut bytes = header(&specs, dtype).unwrap();
    tensors.iter().for_each(|(_, _, data)| dtype.encode(data, &mut bytes));
    bytes
}

/// A plain Hugging Face directory of the toy, as others would write it.
pub(super) fn write_hf(dir: &Path, toy: &Toy, dtype: Dtype) {
    std::fs::create_dir_all(dir).unwrap();
    let config = config_json(&toy.model, Some(1), &[2], dtype);
    std::fs::write(dir.join(names::CONFIG), config.to_string()).unwrap();
    std::fs::write(dir.join(names::WEIGHTS), encode(&toy.weights, dtype)).unwrap();
}

fn refusal(dir: &Path) -> (Exit, String) {
    let error = Opened::open(dir).and_then(|opened| opened.read_weights(&mut |_, _, _| Ok(()))).expect_err("accepted");
    (exit_of(&error), error.to_string())
}

#[test]
fn half_precision_weights_are_widened() {
    let toy = Toy::at(1);
    for (dtype, round) in [
        (Dtype::F32, (|v| v) as fn(f32) -> f32),
        (Dtype::Bf16, |v| bf16::from_f32(v).to_f32()),
        (Dtype::F16, |v| f16::from_f32(v).to_f32()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        write_hf(dir.path(), &toy, dtype);
        let opened = Opened::open(dir.path()).unwrap();
        assert_eq!((opened.bos, opened.eos.as_slice(), opened.manifest.is_none()), (Some(1), &[2][..], true));
        let mut expected = Toy::at(1);
        expected.weights.iter_mut().flat_map(|(_, _, data)| data).for_each(|v| *v = round(*v));
        expected.assert_weights(&opened);
        assert_eq!(exit_of(&opened.trainer_state().unwrap_err()), Exit::Config);
        assert_eq!(exit_of(&opened.read_optimizer_state(&mut |_, _, _| Ok(())).unwrap_err()), Exit::Config);
    }
}

#[test]
fn tied_models_may_carry_an_equal_head_only() {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::of(toy_model(true), 1);
    write_hf(dir.path(), &toy, Dtype::F32);
    toy.assert_weights(&Opened::open(dir.path()).unwrap());
    let (_, shape, data) = toy.weights[0].clone();
    let mut tensors = toy.weights.clone();
    tensors.push((LM_HEAD.to_owned(), shape, data));
    std::fs::write(dir.path().join(names::WEIGHTS), encode(&tensors, Dtype::F32)).unwrap();
    toy.assert_weights(&Opened::open(dir.path()).unwrap());
    tensors.last_mut().unwrap().2[9] += 1.0;
    std::fs::write(dir.path().join(names::WEIGHTS), encode(&tensors, Dtype::F32)).unwrap();
    let (exit, message) = refusal(dir.path());
    assert_eq!(exit, Exit::Data);
    assert!(message.contains("tie_word_embeddings") && message.contains(LM_HEAD), "{message}");
    let out = dir.path().join("out");
    assert!(export(&Opened::open(dir.path()).unwrap(), &out, Dtype::F32, None).is_err() && !out.exists());
}

#[test]
fn tensors_that_do_not_fit_are_all_named() {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::at(1);
    write_hf(dir.path(), &toy, Dtype::F32);
    let write = |change: &dyn Fn(&mut Vec<Tensor>)| {
        let mut tensors = toy.weights.clone();
        change(&mut tensors);
        std::fs::write(dir.path().join(names::WEIGHTS), encode(&tensors, Dtype::F32)).unwrap();
    };
    write(&|tensors| {
        tensors[2].1.reverse();
        tensors[5].0.push_str(".bias");
        drop(tensors.pop());
    });
    let (exit, message) = refusal(dir.path());
    assert_eq!(exit, Exit::Data);
    for part in [
        "2 missing",
        LM_HEAD,
        "1 not expected (model.layers.0.self_attn.o_proj.weight.bias)",
        "model.layers.0.self_attn.q_proj.weight is [8, 12] instead of [12, 8]",
    ] {
        assert!(message.contains(part), "{message}");
    }
    write(&|tensors| tensors.push(("model.layers.0.self_attn.q_proj.bias".into(), vec![12], vec![0.0; 12])));
    let error = Opened::open(dir.path()).unwrap_err();
    assert!(error.downcast_ref::<Failure>().unwrap().hint.as_ref().unwrap().contains("biases"));
    write(&|tensors| tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), vec![3], vec![0.0; 3])));
    toy.assert_weights(&Opened::open(dir.path()).unwrap());
}

#[test]
fn pickles_and_other_dtypes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::at(1);
    write_hf(dir.path(), &toy, Dtype::F32);
    let weights = dir.path().join(names::WEIGHTS);
    let text = std::fs::read(&weights).unwrap();
    let at = text.windows(5).position(|w| w == b"\"F32\"").unwrap();
    std::fs::write(&weights, [&text[..at], &b"\"I32\""[..], &text[at + 5..]].concat()).unwrap();
    let (exit, message) = refusal(dir.path());
    assert!(exit == Exit::Config && message.contains("I32") && message.contains(EMBED), "{message}");
    std::fs::remove_file(&weights).unwrap();
    assert_eq!(refusal(dir.path()).0, Exit::Data);
    std::fs::write(dir.path().join("pytorch_model.bin"), "pickle").unwrap();
    let (exit, message) = refusal(dir.path());
    assert!(exit == Exit::Config && message.contains("pytorch_model.bin") && message.contains("pickle"), "{message}");
}

#[test]
fn index_leads_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::at(1);
    let inside = dir.path().join("model");
    write_hf(&inside, &toy, Dtype::F32);
    std::fs::rename(inside.join(names::WEIGHTS), dir.path().join("outside.safetensors")).unwrap();
    let absolute = dir.path().join("outside.safetensors").display().to_string();
    for file in [json!("../outside.safetensors"), json!(absolute), json!("x.bin"), json!(""), json!(7), json!(null)] {
        let map: serde_json::Map<String, Value> =
            toy.weights.iter().map(|(name, ..)| (name.clone(), file.clone())).collect();
        std::fs::write(inside.join(names::INDEX), json!({ "weight_map": map }).to_string()).unwrap();
        let (exit, message) = refusal(&inside);
        assert!(exit == Exit::Data && message.contains(names::INDEX), "{message}");
    }
    // As in the cache of the hub, a plain model's files may be links.
    std::fs::remove_file(inside.join(names::INDEX)).unwrap();
    symlink(dir.path().join("outside.safetensors"), inside.join(names::WEIGHTS)).unwrap();
    toy.assert_weights(&Opened::open(&inside).unwrap());
    assert_eq!(resolve(&inside).unwrap(), inside);
}

/// Opens `bytes` as a safetensors file; whatever is accepted must be readable.
fn try_bytes(dir: &Path, bytes: &[u8]) -> Result<()> {
    let path = dir.join("t.safetensors");
    std::fs::write(&path, bytes)?;
    let file = TensorFile::open(std::fs::File::open(&path)?, bytes.len() as u64, &path)?;
    for name in file.names() {
        let (shape, values) = file.read(&name)?;
        assert_eq!(shape.iter().product::<usize>(), values.len());
    }
    Ok(())
}

#[test]
fn hostile_headers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = |json: &str, data: usize| [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &vec![0; data]].concat();
    let one = |shape: &str, offsets: &str, data: usize| {
        file(&format!("{{\"t\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":{offsets}}}}}"), data)
    };
    try_bytes(dir.path(), &one("[2]", "[0,8]", 8)).unwrap();
    let hostile = [
        Vec::new(),
        vec![0; 7],
        u64::MAX.to_le_bytes().to_vec(),
        (1_u64 << 40).to_le_bytes().to_vec(),
        file("", 0),
        file("[]", 0),
        file("{", 0),
        one("[2]", "[0,8]", 7),
        one("[2]", "[0,8]", 9),
        one("[2]", "[8,0]", 8),
        one("[2]", "[4,12]", 12),
        one("[3]", "[0,8]", 8),
        one("[-2]", "[0,8]", 8),
        one("[4000000000000]", "[0,16000000000000]", 8),
        one("[9223372036854775807,2]", "[0,8]", 8),
        one("[4294967296,4294967296]", "[0,0]", 0),
        one("[2]", "[0,18446744073709551615]", 8),
        file(&"[".repeat(100_000), 0),
        file(
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
            4,
        ),
    ];
    for (n, bytes) in hostile.iter().enumerate() {
        let error = try_bytes(dir.path(), bytes).expect_err(&format!("case {n} was accepted"));
        assert_eq!(exit_of(&error), Exit::Data, "case {n}: {error}");
    }
}

#[test]
fn mutated_headers_never_panic() {
    let dir = quick_dir();
    let good = encode(&Toy::at(1).weights[..4], Dtype::F16);
    let (header, data) = good.split_at(8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize);
    let (mut damage, tries) = (Damage::new(1), rounds(3000));
    let refused = (0..tries).filter(|_| try_bytes(dir.path(), &[&damage.of(header), data].concat()).is_err()).count();
    assert!(refused > tries / 3 * 2 && refused < tries, "{refused}");
}

#[test]
fn export_rounds_trims_and_copies_the_tokenizer() {
    let run = tempfile::tempdir().unwrap();
    let toy = Toy::at(6);
    toy.save(run.path()).unwrap();
    let out = run.path().join("export/bf16");
    export(&Opened::open(run.path()).unwrap(), &out, Dtype::Bf16, Some(17)).unwrap();
    let expected =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(listing(&out), expected);
    let opened = Opened::open(&out).unwrap();
    assert_eq!((opened.model.vocab_size, opened.bos, opened.eos.as_slice()), (17, None, &[19][..]));
    let config: Value = serde_json::from_slice(&std::fs::read(out.join(names::CONFIG)).unwrap()).unwrap();
    assert_eq!((&config["dtype"], &config["torch_dtype"]), (&json!("bfloat16"), &json!("bfloat16")));
    let mut expected = Toy::at(6);
    for (name, shape, data) in &mut expected.weights {
        if name == EMBED || name == LM_HEAD {
            shape[0] = 17;
            data.truncate(17 * 8);
        }
        data.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
    }
    expected.assert_weights(&opened);

    for taken in [out.as_path(), &run.path().join("checkpoints")] {
        assert_eq!(
            exit_of(&export(&Opened::open(run.path()).unwrap(), taken, Dtype::F32, None).unwrap_err()),
            Exit::Config
        );
    }
    let empty = run.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    export(&Opened::open(&out).unwrap(), &empty, Dtype::F32, None).unwrap();
    expected.assert_weights(&Opened::open(&empty).unwrap());
    assert_eq!(
        exit_of(&export(&Opened::open(&out).unwrap(), &run.path().join("x"), Dtype::F32, Some(18)).unwrap_err()),
        Exit::Config
    );
}

#[test]
fn export_refuses_what_f16_cannot_hold() {
    let run = tempfile::tempdir().unwrap();
    let mut toy = Toy::at(6);
    toy.weights[4].2[1] = 1e5;
    toy.save(run.path()).unwrap();
    let error = export(&Opened::open(run.path()).unwrap(), &run.path().join("out"), Dtype::F16, None).unwrap_err();
    assert!(exit_of(&error) == Exit::Data && error.to_string().contains(&toy.weights[4].0), "{error}");
    assert_eq!(listing(run.path()), ["checkpoints"]);
    export(&Opened::open(run.path()).unwrap(), &run.path().join("out"), Dtype::Bf16, None).unwrap();
}

#[test]
fn paths_that_hold_no_model_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_owned(), dir.path().join("missing")] {
        for error in [resolve(&path).unwrap_err(), Opened::open(&path).unwrap_err()] {
            assert_eq!(exit_of(&error), Exit::Io);
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        }
    }
}
