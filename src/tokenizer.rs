//! Text to token ids and back: GPT-2's vocabulary (built in), any `tokenizer.json`, or one trained on the run's text.
//!
//! [`Tokenizer`] has two engines. Byte-level BPE with GPT-2's split ([`byte_bpe`]) covers the built-in, the trained and many
//! downloaded vocabularies at several times tiktoken's speed; every other file runs in Hugging Face's crate ([`hf`]). The
//! choice changes the speed only.
//!
//! There are two ways to encode because there are two kinds of text. Documents of a corpus are data: whatever looks
//! like a special token in them is plain text ([`Tokenizer::encode_document`]). Prompts are written by the user, who
//! may name a special token, and start as the model expects ([`Tokenizer::encode`]).

mod byte_alphabet;
mod byte_bpe;
mod byte_json;
mod cache;
mod control;
mod decoder;
mod encoder;
mod engine;
mod hf;
mod merges;
mod new_tokens;
pub(crate) mod pretokenize;
mod special_tokens;
mod stream;
#[cfg(test)]
mod tests;
mod train;

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::Result;
use serde_json::Value;

use crate::runtime::content::Kind;
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::files::io_failure;
use byte_bpe::ByteBpe;
use decoder::Leading;
use hf::HfTokenizer;
use special_tokens::SpecialTokens;
pub(crate) use special_tokens::portable_config;
pub use stream::DecodeStream;

/// Largest tokenizer file accepted, in bytes; ten times the largest known.
const MOST_BYTES: u64 = 256 << 20;

/// A tokenizer. A clone is a handle on the same one.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Arc<Engine>,
    special_tokens: SpecialTokens,
    /// The bytes of tokenizer.json, made when first needed.
    json: OnceLock<Vec<u8>>,
    /// The strings of its control ids, made when first needed.
    control: OnceLock<Vec<String>>,
}

impl Inner {
    fn new(engine: Arc<Engine>, special_tokens: SpecialTokens) -> Arc<Self> {
        Arc::new(Self { engine, special_tokens, json: OnceLock::new(), control: OnceLock::new() })
    }
}

enum Engine {
    Byte(Box<ByteBpe>),
    Hf(Box<HfTokenizer>),
}

/// What one id contributes to decoded text.
enum Piece<'a> {
    /// Bytes that may be UTF-8 only together with their neighbours'.
    Bytes(&'a [u8]),
    Text(&'a str),
    /// One byte of a run that is UTF-8 as a whole or not at all.
    Byte(u8),
    /// Nothing: the vocabulary has no such id.
    Unknown,
    /// Something that depends on the ids around it.
    Contextual,
}

impl Tokenizer {
    /// GPT-2's 50,257 ids, encoding as tiktoken's `gpt2` does; no file and no network. Made once per process.
    pub fn gpt2() -> Result<Self> {
        static GPT2: OnceLock<Tokenizer> = OnceLock::new();
        if let Some(tokenizer) = GPT2.get() {
            return Ok(tokenizer.clone());
        }
        let tokenizer = Self::from_byte_bpe(ByteBpe::gpt2()?);
        Ok(GPT2.get_or_init(|| tokenizer).clone())
    }

    /// The tokenizer of a `tokenizer.json`, with the special tokens that a `tokenizer_config.json` beside it names.
    ///
    /// Fails with [`Exit::Io`] if the file cannot be read, [`Exit::Data`] if it is not a tokenizer that works.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::load(path, false)
    }

    /// The tokenizer of a Hugging Face model directory. The model's settings decide where the tokenizer's own do not say
    /// what ends and begins a text. Fails as [`Tokenizer::from_file`].
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        if !path.exists() {
            let message = format!("{} holds no tokenizer.json", dir.display());
            let hint = "a tokenizer in another form is converted by transformers' AutoTokenizer and save_pretrained";
            return Err(fail(Exit::Io, message).hint(hint).into());
        }
        Self::load(&path, true)
    }

    /// Trains a byte-level BPE on `texts`: 256 bytes, the merges, and `<|endoftext|>` as the last id.
    ///
    /// The result has `vocab_size` ids, or fewer if the text has no more pairs to merge; read
    /// [`vocab_size`](Self::vocab_size). It depends on the words of the texts and their counts alone, not on threads or
    /// order. At most the first GiB of text is read. Fails with [`Exit::Config`] below 257 ids, [`Exit::Data`] without
    /// text.
    pub fn train<'a>(texts: impl Iterator<Item = &'a str>, vocab_size: usize) -> Result<Self> {
        Ok(Self::from_byte_bpe(train::train(texts, vocab_size)?))
    }

    fn from_byte_bpe(engine: ByteBpe) -> Self {
        let engine = Engine::Byte(Box::new(engine));
        let special = SpecialTokens::usual(&engine);
        Self { inner: Inner::new(engine.into(), special) }
    }

    fn load(path: &Path, of_model: bool) -> Result<Self> {
        let bytes = read_capped(path)?;
        Kind::of_head(&bytes).refuse_unless(Kind::Json, path)?;
        let root: Value = serde_json::from_slice(&bytes).map_err(|error| wrong_file(path, error))?;
        let engine = Engine::from_json(bytes, &root).map_err(|why| wrong_file(path, why))?;
        // The settings in the directory belong to its tokenizer.json, not to a file of another name.
        let special = match path.parent() {
            Some(dir) if path.ends_with("tokenizer.json") => SpecialTokens::read(dir, of_model, &engine)?,
            _ => SpecialTokens::usual(&engine),
        };
        Ok(Self::from_parts(engine, special))
    }

    fn from_parts(mut engine: Engine, special: SpecialTokens) -> Self {
        if let Engine::Hf(hf) = &mut engine {
            hf.add_control(special.eos.into_iter().chain(special.bos).chain(special.stops.iter().copied()));
        }
        Self { inner: Inner::new(engine.into(), special) }
    }

    /// Encodes a prompt: special tokens' strings give their ids, and what the file says to add (a beginning of text)
    /// is added, as Hugging Face does by default.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let special = &self.inner.special_tokens;
        match (&*self.inner.engine, special.added) {
            (Engine::Hf(engine), None) => engine.encode(text),
            (Engine::Byte(engine), None) => Ok(engine.encode(text)),
            (_, Some(added)) => {
                let mut ids: Vec<u32> = special.bos.filter(|_| added.bos).into_iter().collect();
                ids.extend(self.encode_rendered(text)?);
                ids.extend(special.eos.filter(|_| added.eos));
                Ok(ids)
            }
        }
    }

    /// Encodes the output of a chat template: special tokens' strings give their ids, and nothing is added.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>> {
        match &*self.inner.engine {
            Engine::Byte(engine) => Ok(engine.encode(text)),
            Engine::Hf(engine) => engine.encode_rendered(text),
        }
    }

    /// [`encode_rendered`](Self::encode_rendered), with the bytes of `text` that each id stands for.
    pub fn encode_rendered_with_places(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        let engine = match &*self.inner.engine {
            Engine::Hf(engine) => return engine.encode_rendered_with_places(text),
            Engine::Byte(engine) => engine,
        };
        let mut at = 0;
        let with_places = engine.encode(text).into_iter().map(|id| {
            let length = match engine.name_of(id).filter(|_| engine.is_special(id)) {
                Some(name) => name.len(),
                None => engine.tokens().get(id as usize).map_or(0, Vec::len),
            };
            at += length;
            (id, at - length..at)
        });
        Ok(with_places.collect())
    }

    /// Encodes a document of a corpus: nothing in it is special, and nothing is added.
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        match &*self.inner.engine {
            Engine::Byte(engine) => Ok(engine.encode_ordinary(text)),
            Engine::Hf(engine) => engine.encode_ordinary(text),
        }
    }

    /// The text of `ids`. Malformed UTF-8 becomes U+FFFD; ids outside the vocabulary (the padding rows of a model) have
    /// no text. Fails only for tokenizers whose decoder itself fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.decode_after(&[], ids, skip_special)
    }

    /// The text that `ids` add to the text of `before`: SentencePiece's tokens begin with a space in the middle of a
    /// text and not at its beginning. A character that is divided between the two is U+FFFD in both.
    pub fn decode_after(&self, before: &[u32], ids: &[u32], skip_special: bool) -> Result<String> {
        let mut stream = self.decode_stream(before, skip_special);
        if self.decodes_as_a_whole() {
            return stream.decode_rest(ids);
        }
        let mut text: String = ids.iter().filter_map(|id| stream.push(*id)).collect();
        text.push_str(&stream.finish());
        Ok(text)
    }

    /// A decoder for ids that come one at a time, after `before`.
    pub fn decode_stream(&self, before: &[u32], skip_special: bool) -> DecodeStream {
        DecodeStream::new(self.clone(), before, skip_special)
    }

    /// The bytes that `id` stands for within a text: `None` for special tokens and unknown ids.
    ///
    /// Summed over ids from [`encode_ordinary`](Self::encode_ordinary) of a byte-level tokenizer they are exactly the
    /// text's bytes; tokenizers in Llama 2's style put a space before the text and so count one more.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        if self.is_special(id) {
            return None;
        }
        match self.piece(id) {
            Piece::Bytes(bytes) => Some(bytes.to_vec()),
            Piece::Text(text) => Some(text.into()),
            Piece::Byte(byte) => Some(vec![byte]),
            Piece::Contextual => {
                let before = self.encode_ordinary("a").ok()?;
                Some(self.decode_after(&before, &[id], false).ok()?.into_bytes())
            }
            Piece::Unknown => None,
        }
    }

    /// One more than the largest id: the least number of rows that the model's embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.inner.engine.vocab_size()
    }

    /// The end of text, which also separates the documents of a corpus.
    pub fn eos_id(&self) -> Option<u32> {
        self.inner.special_tokens.eos
    }

    /// The beginning of text (GPT-2's is its end of text).
    pub fn bos_id(&self) -> Option<u32> {
        self.inner.special_tokens.bos
    }

    /// All ids that end a generated text, the end of text first: chat models have several.
    pub fn stop_ids(&self) -> &[u32] {
        &self.inner.special_tokens.stops
    }

    /// The id of the token written `token` in tokenizer.json (a byte-level `Ġthe`, a special `<|endoftext|>`).
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.engine.id_of(token)
    }

    /// The files by which Hugging Face loads this tokenizer, as (name, bytes), for a model of `max_length` positions.
    /// A loaded tokenizer keeps its own settings but for `model_max_length`.
    pub fn files(&self, max_length: usize) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let config = self.inner.special_tokens.config_json(max_length, &self.inner.engine)?;
        Ok(vec![("tokenizer.json", self.json().to_vec()), ("tokenizer_config.json", config)])
    }

    /// The same tokenizer for conversations written by the chat template `source`, in which `end_of_turn` ends an answer.
    pub fn for_chat(&self, source: &str, end_of_turn: Option<u32>) -> Self {
        let mut special = self.inner.special_tokens.clone();
        special.chat_template = Some(source.to_owned());
        special.stops.extend(end_of_turn.filter(|id| !special.stops.contains(id)));
        Self { inner: Inner::new(self.inner.engine.clone(), special) }
    }

    /// The source of its chat template, if it has one.
    pub fn chat_template(&self) -> Option<&str> {
        let special = &self.inner.special_tokens;
        special.chat_template.as_deref().or_else(|| special.config.as_ref()?.get("chat_template")?.as_str())
    }

    /// BLAKE3 of tokenizer.json, in hex: equal for tokenizers saved and loaded again, and for all files of GPT-2's own
    /// vocabulary. Files that run in Hugging Face's crate are hashed as they are.
    pub fn fingerprint(&self) -> String {
        blake3::hash(self.json()).to_hex().to_string()
    }

    /// Whether `other` gives every text the same ids, also if its file is written in another way.
    pub fn is_same_as(&self, other: &Self) -> bool {
        const PROBE: &str = "Hello, World! 12345  it's \t\u{e9}t\u{e9} \u{1f600}\n\n  don't\u{2581}x";
        let mut ids = 0..self.vocab_size() as u32;
        self.fingerprint() == other.fingerprint()
            || self.vocab_size() == other.vocab_size()
                && ids.all(|id| self.name_of(id) == other.name_of(id) && self.is_special(id) == other.is_special(id))
                && self.encode_ordinary(PROBE).ok() == other.encode_ordinary(PROBE).ok()
    }

    pub(crate) fn json(&self) -> &[u8] {
        match &*self.inner.engine {
            Engine::Hf(engine) => &engine.json,
            Engine::Byte(engine) => self.inner.json.get_or_init(|| engine.to_json()),
        }
    }

    /// Whether `id` is a token of its own, such as the end of text, that no ordinary text gives.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.engine.is_special(id)
    }

    fn piece(&self, id: u32) -> Piece<'_> {
        match &*self.inner.engine {
            Engine::Byte(engine) => engine.tokens().get(id as usize).map_or(Piece::Unknown, |t| Piece::Bytes(t)),
            Engine::Hf(engine) => engine.piece(id),
        }
    }

    fn leading(&self) -> Leading {
        match &*self.inner.engine {
            Engine::Byte(_) => Leading::NOTHING,
            Engine::Hf(engine) => engine.decoder().leading(),
        }
    }

    /// The token `id` as tokenizer.json writes it.
    fn name_of(&self, id: u32) -> Option<String> {
        self.inner.engine.name_of(id)
    }

    fn decodes_as_a_whole(&self) -> bool {
        matches!(&*self.inner.engine, Engine::Hf(engine) if engine.decodes_as_a_whole())
    }

    /// The text of `ids` by Hugging Face's crate, for decoders that only it knows.
    fn decode_as_a_whole(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        match &*self.inner.engine {
            Engine::Byte(_) => Ok(String::new()),
            Engine::Hf(engine) => engine.decode(ids, skip_special),
        }
    }
}

/// The bytes of a regular file of credible size.
fn read_capped(path: &Path) -> Result<Vec<u8>> {
    // Checked before it is opened, because opening a pipe would wait for its writer.
    let meta = std::fs::metadata(path).map_err(|e| io_failure("read", path, &e))?;
    if !meta.is_file() || meta.len() > MOST_BYTES {
        return Err(wrong_file(path, "it is not a regular file of at most 256 MiB").into());
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes));
    read.map_err(|e| io_failure("read", path, &e))?;
    Ok(bytes)
}

/// The failure of a file that is not what its name says.
fn wrong_file(path: &Path, why: impl std::fmt::Display) -> Failure {
    fail(Exit::Data, format!("{} is not usable: {why}", path.display()))
        .hint("give a Hugging Face tokenizer.json (transformers' save_pretrained writes one) or gpt2")
}
