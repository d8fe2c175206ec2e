//! `RUN/tensorboard/`: the same records as TensorBoard reads them, with no Python.
//!
//! An event file is a sequence of records: length (u64), masked CRC-32C of it, a protobuf `Event`, masked CRC-32C of that, little-endian.
//! The file is a copy: opening a run writes it anew from `metrics.jsonl` and `samples.jsonl`, which have been cut to the checkpoint, so
//! that neither a torn record nor a step that is repeated stays. From there on it grows by whole records.
//!
//! The clock is not in the metrics; a record's time is that of the run's first start plus the time that steps took.

use super::{Eval, Layers, Record, SampleRecord, Train, Val, read_log};
use crate::runtime::files::{Appender, append_bytes, create_dirs, write_atomic};
use anyhow::Result;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// TensorBoard finds its files by this part of their name, and takes those of a directory in the order of their names.
const FILE: &str = "events.out.tfevents.0000000001.llama-lite";

/// The event file of a run, open for appending.
#[derive(Debug)]
pub struct TensorBoard {
    log: Appender,
    clock: Clock,
}

/// Seconds since 1970, as far as the records tell.
#[derive(Clone, Copy, Debug)]
struct Clock {
    seconds: f64,
    /// Tokens up to the last step.
    tokens: u64,
}

impl TensorBoard {
    /// Opens the event file of `run_dir`, written anew from its logs.
    ///
    /// # Errors
    /// Those of reading the logs and writing the file.
    pub fn open(run_dir: &Path) -> Result<Self> {
        let records = read_log::<Record>(run_dir)?;
        let samples = read_log::<SampleRecord>(run_dir)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let mut clock = Clock { seconds: 0.0, tokens: 0 };
        records.iter().for_each(|record| clock.advance(record));
        // The logs hold no time of day: the run is placed so that it ends now.
        let mut clock = Clock { seconds: now - clock.seconds, tokens: 0 };
        let mut bytes = framed(&event(clock.seconds, 0, &field(3, b"brain.Event:2")));
        let mut samples = samples.iter().peekable();
        for record in &records {
            clock.advance(record);
            while let Some(sample) = samples.next_if(|sample| sample.step < step_of(record)) {
                bytes.extend(sample_event(clock.seconds, sample));
            }
            bytes.extend(record_event(clock.seconds, record));
        }
        samples.for_each(|sample| bytes.extend(sample_event(clock.seconds, sample)));
        let dir = run_dir.join("tensorboard");
        create_dirs(&dir)?;
        write_atomic(&dir.join(FILE), &bytes)?;
        Ok(Self { log: append_bytes(&dir.join(FILE))?, clock })
    }

    /// Appends the scalars of `record`.
    ///
    /// # Errors
    /// Those of writing.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        self.clock.advance(record);
        self.log.bytes(&record_event(self.clock.seconds, record))
    }

    /// Appends a generated text.
    ///
    /// # Errors
    /// Those of writing.
    pub fn append_sample(&mut self, sample: &SampleRecord) -> Result<()> {
        self.log.bytes(&sample_event(self.clock.seconds, sample))
    }
}

impl Clock {
    fn advance(&mut self, record: &Record) {
        let Record::Train(train) = record else { return };
        let took = train.tokens.saturating_sub(self.tokens) as f64 / train.tokens_per_second;
        self.tokens = train.tokens;
        if took.is_finite() {
            self.seconds += took;
        }
    }
}

fn step_of(record: &Record) -> u64 {
    match record {
        Record::Train(Train { step, .. }) | Record::Val(Val { step, .. }) => *step,
        Record::Eval(Eval { step, .. }) | Record::Layers(Layers { step, .. }) => *step,
    }
}

/// The scalars of a record, as one event.
fn record_event(time: f64, record: &Record) -> Vec<u8> {
    let scalars: Vec<(String, f64)> = match record {
        Record::Train(t) => [
            ("train/loss", t.loss),
            ("train/grad_norm", t.grad_norm),
            ("train/lr", t.lr),
            ("train/tokens", t.tokens as f64),
            ("speed/tokens_per_second", t.tokens_per_second),
            ("speed/mfu", t.mfu),
            ("speed/data_seconds", t.data_seconds),
        ]
        .map(|(tag, value)| (tag.to_owned(), value))
        .into(),
        Record::Val(v) => {
            let floor = v.floor_bits_per_byte.unwrap_or(f64::NAN);
            [("val/loss", v.loss), ("val/bits_per_byte", v.bits_per_byte), ("val/floor_bits_per_byte", floor)]
                .map(|(tag, value)| (tag.to_owned(), value))
                .into()
        }
        Record::Eval(e) => {
            let tag = format!("eval/{}/{}", e.task, e.metric);
            vec![(format!("{tag}_stderr"), e.stderr), (tag, e.value)]
        }
        Record::Layers(l) => {
            let ratios = l.update_norm.iter().zip(&l.weight_norm).map(|(update, weight)| update / weight);
            let steps = l.names.iter().zip(&l.adam_step).map(|(name, x)| (format!("adam_step/{name}"), *x));
            let most = l.attention_logit_max.iter().enumerate();
            let most = most.map(|(block, x)| (format!("attention_logit_max/{block}"), *x));
            let norms = l.names.iter().zip(ratios.zip(&l.grad_norm)).flat_map(|(name, (ratio, grad))| {
                [(format!("update_to_weight/{name}"), ratio), (format!("layer_grad_norm/{name}"), *grad)]
            });
            norms.chain(steps).chain(most).chain([("train/logit_rms".to_owned(), l.logit_rms)]).collect()
        }
    };
    let values: Vec<u8> =
        scalars.iter().filter(|(_, value)| value.is_finite()).flat_map(|(tag, v)| scalar(tag, *v)).collect();
    framed(&event(time, step_of(record), &field(5, &values)))
}

/// A text, with its prompt, as Markdown shows it as it is.
fn sample_event(time: f64, sample: &SampleRecord) -> Vec<u8> {
    let text = format!("{}{}", sample.prompt, sample.text);
    let shown: String = text.lines().map(|line| format!("    {line}\n")).collect();
    // TensorProto: dtype DT_STRING, one dimension of one, the string.
    let shape = field(2, &varint(1, 1));
    let tensor = [varint(1, 7), field(2, &shape), field(8, shown.as_bytes())].concat();
    let plugin = field(1, &field(1, b"text"));
    let tag: String = sample.prompt.chars().take(40).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let value = [field(1, format!("samples/{tag}").as_bytes()), field(9, &plugin), field(8, &tensor)].concat();
    framed(&event(time, sample.step, &field(5, &field(1, &value))))
}

/// `Summary.Value` with a tag and a simple value, as a field of `Summary`.
fn scalar(tag: &str, value: f64) -> Vec<u8> {
    let mut inner = field(1, tag.as_bytes());
    inner.push(2 << 3 | 5);
    inner.extend((value as f32).to_le_bytes());
    field(1, &inner)
}

/// `Event`: wall time, step, and `what`.
fn event(time: f64, step: u64, what: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1 << 3 | 1];
    bytes.extend(time.to_le_bytes());
    bytes.extend(varint(2, step));
    bytes.extend(what);
    bytes
}

/// A protobuf field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    push_varint(&mut out, bytes.len() as u64);
    out.extend(bytes);
    out
}

/// A protobuf field that is an integer.
fn varint(number: u8, value: u64) -> Vec<u8> {
    let mut out = vec![number << 3];
    push_varint(&mut out, value);
    out
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A record of the file.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), data, &masked_crc(data)].concat()
}

fn masked_crc(data: &[u8]) -> [u8; 4] {
    let crc = crc32c(data);
    // Masked as TFRecord files have it.
    (crc.rotate_right(15).wrapping_add(0xa282_ead8)).to_le_bytes()
}

/// CRC-32C (Castagnoli), bit by bit: records are few and short.
fn crc32c(data: &[u8]) -> u32 {
    let mut crc = !0;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::super::tests::{train, val};
    use super::*;

    #[test]
    fn checksums_are_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        // What TensorBoard itself (masked_crc32c) makes of the length of a record of 24 bytes.
        assert_eq!(masked_crc(&24u64.to_le_bytes()), [0xa3, 0x7f, 0x4b, 0x22]);
    }

    /// Lengths of the records of a file, all checksums compared.
    fn walk(bytes: &[u8]) -> usize {
        let (mut at, mut records) = (0, 0);
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            assert_eq!(bytes[at + 8..at + 12], masked_crc(&bytes[at..at + 8]));
            let data = &bytes[at + 12..at + 12 + length];
            assert_eq!(bytes[at + 12 + length..at + 16 + length], masked_crc(data));
            (at, records) = (at + 16 + length, records + 1);
        }
        records
    }

    #[test]
    fn the_file_is_made_anew_and_grows_by_whole_records() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tensorboard").join(FILE);
        let sample = SampleRecord { step: 1, prompt: "One\nday".into(), text: " a".into(), seed: 1 };
        let mut log = TensorBoard::open(dir.path()).unwrap();
        log.append(&Record::Train(train(1))).unwrap();
        log.append(&Record::Val(val(1))).unwrap();
        log.append_sample(&sample).unwrap();
        assert_eq!(walk(&std::fs::read(&path).unwrap()), 4);
        // What is not in the logs is gone when the run is opened again, a torn record too.
        let lines = [1, 2].map(|step| serde_json::to_string(&Record::Train(train(step))).unwrap() + "\n").concat();
        std::fs::write(dir.path().join("metrics.jsonl"), lines).unwrap();
        std::fs::write(&path, b"torn").unwrap();
        drop(TensorBoard::open(dir.path()).unwrap());
        assert_eq!(walk(&std::fs::read(&path).unwrap()), 3);
    }
}
