//! The choice of an engine, and what both of them know of their vocabulary.

use serde_json::Value;

use super::Engine;
use super::byte_bpe::ByteBpe;
use super::hf::HfTokenizer;

impl Engine {
    /// The engine of the file `json`, parsed as `root`. `Err` says in a few words why the file is not usable.
    pub(super) fn from_json(json: Vec<u8>, root: &Value) -> Result<Self, String> {
        match ByteBpe::from_json(root) {
            Some(engine) => Ok(Engine::Byte(Box::new(engine))),
            None => Ok(Engine::Hf(Box::new(HfTokenizer::new(json, root)?))),
        }
    }

    pub(super) fn vocab_size(&self) -> usize {
        match self {
            Engine::Byte(engine) => engine.tokens().len(),
            Engine::Hf(engine) => engine.vocab_size(),
        }
    }

    pub(super) fn id_of(&self, token: &str) -> Option<u32> {
        match self {
            Engine::Byte(engine) => engine.id_of(token),
            Engine::Hf(engine) => engine.id_of(token),
        }
    }

    /// The token `id` as tokenizer.json writes it.
    pub(super) fn name_of(&self, id: u32) -> Option<String> {
        match self {
            Engine::Byte(engine) => engine.name_of(id),
            Engine::Hf(engine) => engine.name_of(id),
        }
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        match self {
            Engine::Byte(engine) => engine.is_special(id),
            Engine::Hf(engine) => engine.is_special(id),
        }
    }
}
