//! Records in: a thread cuts them out of the files, in batches that do not depend on the number of threads, one batch
//! ahead of the work; another makes the files local, one file ahead of that.
//!
//! The threads are not joined: a run that fails must not wait for a download to end, and ends the process soon.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::corpus::options::{Grain, Inputs};
use crate::corpus::source::{Position, RawRecord, ReadOptions, Reader};
use crate::runtime::error::{Exit, fail};
use crate::runtime::thread::spawn;

/// A place between two records of the corpus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CorpusPosition {
    /// Index of the file; the number of files at the end.
    pub(super) file: usize,
    pub(super) position: Position,
}

#[derive(Debug, Default)]
pub(super) struct RecordBatch {
    /// Each with the index of its file.
    pub(super) records: Vec<(usize, RawRecord)>,
    /// Where the next batch begins.
    pub(super) end: CorpusPosition,
    /// Bytes of all files read so far.
    pub(super) bytes_read: u64,
}

/// The batches of a corpus.
pub(super) struct Batches {
    receiver: Receiver<Result<RecordBatch>>,
}

impl Batches {
    /// Starts reading `inputs` from `from` on.
    pub(super) fn start(inputs: &Inputs, read: &ReadOptions, grain: Grain, from: CorpusPosition) -> Result<Self> {
        // Without a buffer: the one batch that waits to be taken is what is read ahead.
        let (sender, receiver) = sync_channel(0);
        let inputs = inputs.clone();
        let read = read.clone();
        spawn("read", move || {
            let error = match fetch(&inputs, from.file) {
                Ok(paths) => Cutter { inputs, read, grain, sender: sender.clone() }.run(from, &paths).err(),
                Err(error) => Some(error),
            };
            // The send fails only if the receiver is gone: the run has ended and needs no message.
            let _ = error.map(|error| sender.send(Err(error)));
        })?;
        Ok(Self { receiver })
    }

    /// The next batch. It must not be called after the batch that ends at the end of the corpus.
    pub(super) fn next(&mut self) -> Result<RecordBatch> {
        match self.receiver.recv() {
            Ok(batch) => batch,
            Err(_) => Err(fail(Exit::Internal, "the thread that reads the input has died").into()),
        }
    }
}

/// Makes the files from `first` on local, in order, each while the one before is read.
fn fetch(inputs: &Inputs, first: usize) -> Result<Receiver<Result<PathBuf>>> {
    let (sender, receiver) = sync_channel(0);
    let inputs = inputs.clone();
    spawn("fetch", move || {
        for file in first..inputs.list.len() {
            let path = (inputs.fetch)(file);
            let failed = path.is_err();
            // The reader stops at a failure, so there is no point in fetching on.
            if sender.send(path).is_err() || failed {
                return;
            }
        }
    })?;
    Ok(receiver)
}

struct Cutter {
    inputs: Inputs,
    read: ReadOptions,
    grain: Grain,
    sender: SyncSender<Result<RecordBatch>>,
}

impl Cutter {
    /// Returns early once the receiver of the batches is gone.
    fn run(self, from: CorpusPosition, paths: &Receiver<Result<PathBuf>>) -> Result<()> {
        let mut bytes_before: u64 = self.inputs.list.iter().take(from.file).map(|input| input.bytes).sum();
        let mut batch = RecordBatch { end: from, ..RecordBatch::default() };
        let mut bytes = 0;
        for (file, input) in self.inputs.list.iter().enumerate().skip(from.file) {
            let Ok(path) = paths.recv() else {
                return Err(fail(Exit::Internal, "the thread that fetches the input has died").into());
            };
            let mut reader = Reader::open(&path?, &self.read, batch.end.position)?;
            while let Some(raw) = reader.next() {
                let raw = raw?;
                bytes += raw.length;
                batch.end.position = raw.next;
                batch.records.push((file, raw));
                if bytes >= self.grain.batch_bytes || batch.records.len() >= self.grain.batch_records {
                    // A file that has grown since it was listed must not bring the progress above its end.
                    batch.bytes_read = bytes_before + reader.file_bytes().min(input.bytes);
                    let rest = RecordBatch { end: batch.end, ..RecordBatch::default() };
                    bytes = 0;
                    if self.sender.send(Ok(std::mem::replace(&mut batch, rest))).is_err() {
                        return Ok(());
                    }
                }
            }
            bytes_before += input.bytes;
            batch.end = CorpusPosition { file: file + 1, position: Position::default() };
            batch.bytes_read = bytes_before;
        }
        // The send fails only if the run has failed elsewhere.
        let _ = self.sender.send(Ok(batch));
        Ok(())
    }
}
