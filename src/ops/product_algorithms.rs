//! Which algorithm computes which matrix product of a run on a GPU, as the run keeps it: another algorithm may add in another order, and then the
//! bits are others.

use serde::{Deserialize, Serialize};

/// Products that a table may have; a run has some dozens.
const MOST_PRODUCTS: usize = 4096;

/// By how much another algorithm must be faster than cuBLAS's own choice to be taken. What is less is noise, and would differ from run to run.
const LEAST_GAIN: f32 = 0.01;

/// The algorithms of a run, for one card and one version of cuBLASLt: the same card with the same version computes the same bits by them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProductAlgorithms {
    pub gpu: String,
    /// cuBLASLt's version. That of the driver does not matter: the library brings its kernels along.
    pub library: String,
    /// The passes whose products were looked at: precision, sequences and their length.
    pub passes: Vec<String>,
    pub products: Vec<ProductChoice>,
}

/// A product and its algorithm; none where cuBLAS decides itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProductChoice {
    #[serde(flatten)]
    pub key: ProductKey,
    pub algorithm: Option<ProductAlgorithm>,
}

/// What an algorithm is chosen for: `out (rows, columns) = a (rows, inner) b (inner, columns)`, or `+=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProductKey {
    pub rows: u64,
    pub inner: u64,
    pub columns: u64,
    pub a: OperandLayout,
    pub b: OperandLayout,
    pub elements: ElementType,
    pub out_elements: ElementType,
    pub out_stride: u64,
    pub accumulate: bool,
    /// Bytes that all three addresses are multiples of.
    pub alignment: u32,
}

/// How an operand lies in memory: elements from row to row, and whether its transpose is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OperandLayout {
    pub stride: u64,
    pub transposed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    F32,
    Bf16,
}

/// An algorithm of cuBLASLt by its attributes (`cublasLtMatmulAlgoConfigAttributes_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProductAlgorithm {
    pub id: i32,
    pub tile: u32,
    pub stages: u32,
    pub split_k: i32,
    pub reduction: u32,
    pub swizzle: u32,
    pub custom: u32,
    pub inner_shape: u16,
    pub cluster_shape: u16,
}

impl ProductAlgorithm {
    /// Whether all terms of an element are added by one block, in an order of its own. NVIDIA advises to leave out every reduction over blocks
    /// where bits matter, so the deterministic ones are left out as well.
    pub fn adds_in_fixed_order(&self) -> bool {
        self.reduction == 0
    }
}

/// What a choice was made by, for `events.jsonl`: clocks differ from run to run, so they are kept apart from the choice.
#[derive(Clone, Debug, Serialize)]
pub struct ProductTiming {
    pub product: String,
    /// Algorithms that were tried beside cuBLAS's own choice.
    pub tried: usize,
    pub microseconds: f64,
    pub default_microseconds: f64,
}

impl ProductAlgorithms {
    /// # Errors
    /// What is wrong with the text, in words.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let table: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        match table.products.len() {
            0..=MOST_PRODUCTS => Ok(table),
            n => Err(format!("{n} products are more than {MOST_PRODUCTS}")),
        }
    }

    /// # Errors
    /// Why it cannot be used on the card `gpu` with the version `library` of cuBLASLt.
    pub fn check_place(&self, gpu: &str, library: &str) -> Result<(), String> {
        if self.gpu == gpu && self.library == library {
            return Ok(());
        }
        Err(format!("they were chosen on {} with {}, and this is {gpu} with {library}", self.gpu, self.library))
    }

    /// Identifies the choices: equal digests, equal algorithms. Which passes were looked at does not count.
    pub fn digest(&self) -> String {
        let mut products = self.products.clone();
        products.sort_by_key(|choice| choice.key);
        // The text has no number that could be written in two ways.
        let text = serde_json::to_vec(&(&self.gpu, &self.library, products)).unwrap_or_default();
        blake3::hash(&text).to_hex()[..8].to_owned()
    }
}

/// Which of several algorithms to take, by the times of some runs of each: that of the smallest median. The first one is cuBLAS's own choice, and
/// stays unless another one is clearly faster.
pub fn fastest(times: &[Vec<f32>]) -> usize {
    let medians: Vec<f32> = times.iter().map(|times| median(times)).collect();
    let best = (0..medians.len()).min_by(|a, b| medians[*a].total_cmp(&medians[*b])).unwrap_or(0);
    let is_faster = medians.first().is_some_and(|default| medians[best] < default * (1.0 - LEAST_GAIN));
    if is_faster { best } else { 0 }
}

/// The middle one of `times`; infinite if there is none.
pub fn median(times: &[f32]) -> f32 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f32::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f32::INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> ProductAlgorithms {
        let operand = OperandLayout { stride: 64, transposed: false };
        let key = ProductKey {
            rows: 16,
            inner: 64,
            columns: 72,
            a: operand,
            b: OperandLayout { transposed: true, ..operand },
            elements: ElementType::Bf16,
            out_elements: ElementType::F32,
            out_stride: 72,
            accumulate: true,
            alignment: 256,
        };
        let algorithm = ProductAlgorithm {
            id: 66,
            tile: 24,
            stages: 36,
            split_k: 1,
            reduction: 0,
            swizzle: 1,
            custom: 3,
            inner_shape: 0,
            cluster_shape: 5,
        };
        let products = vec![
            ProductChoice { key, algorithm: Some(algorithm) },
            ProductChoice { key: ProductKey { rows: 8, ..key }, algorithm: None },
        ];
        ProductAlgorithms { gpu: "a card".into(), library: "cuBLASLt 13.1.0".into(), passes: vec![], products }
    }

    #[test]
    fn a_table_reads_as_it_was_written() {
        let table = table();
        let text = serde_json::to_string_pretty(&table).unwrap();
        assert!(text.contains("\"elements\": \"bf16\"") && text.contains("\"cluster_shape\": 5"), "{text}");
        assert_eq!(ProductAlgorithms::parse(text.as_bytes()).unwrap(), table);
    }

    #[test]
    fn what_is_no_table_is_an_error_in_words() {
        let text = serde_json::to_string(&table()).unwrap();
        for (from, to) in [
            ("\"id\":66", "\"id\":99999999999"),
            ("\"rows\":16", "\"rows\":-1"),
            ("\"bf16\"", "\"f16\""),
            ("\"custom\":3", "\"other\":3"),
            ("}", ""),
        ] {
            assert_ne!(text.replacen(from, to, 1), text, "{from}");
            assert!(ProductAlgorithms::parse(text.replacen(from, to, 1).as_bytes()).is_err(), "{to}");
        }
        let many = ProductAlgorithms { products: vec![table().products[0]; MOST_PRODUCTS + 1], ..table() };
        let error = ProductAlgorithms::parse(&serde_json::to_vec(&many).unwrap()).unwrap_err();
        assert_eq!(error, "4097 products are more than 4096");
    }

    #[test]
    fn a_digest_is_that_of_the_algorithms() {
        let original = table();
        let mut other = original.clone();
        other.products.reverse();
        other.passes.push("bf16 16 x 1024".into());
        assert_eq!(other.digest(), original.digest());
        other.products[0].algorithm = original.products[0].algorithm;
        assert_ne!(other.digest(), original.digest());
        assert_ne!(ProductAlgorithms { library: "cuBLASLt 13.2.0".into(), ..table() }.digest(), original.digest());
    }

    #[test]
    fn a_table_is_for_one_card_and_one_version() {
        let table = table();
        assert_eq!(table.check_place("a card", "cuBLASLt 13.1.0"), Ok(()));
        let error = table.check_place("another", "cuBLASLt 13.1.0").unwrap_err();
        assert!(error.ends_with("on a card with cuBLASLt 13.1.0, and this is another with cuBLASLt 13.1.0"), "{error}");
        assert!(table.check_place("a card", "cuBLASLt 13.1.1").is_err());
    }

    #[test]
    fn cublas_decides_unless_another_algorithm_is_clearly_faster() {
        assert_eq!(fastest(&[vec![1.0, 9.0, 1.0], vec![0.98, 0.5, 2.0], vec![0.97, 0.97, 0.97]]), 2);
        assert_eq!(fastest(&[vec![1.0], vec![0.995]]), 0);
        assert_eq!(fastest(&[vec![1.0], vec![2.0]]), 0);
        assert_eq!(fastest(&[vec![1.0]]), 0);
        assert_eq!(fastest(&[vec![3.0], vec![], vec![2.0]]), 2);
    }

    #[test]
    fn only_algorithms_of_one_order_are_taken() {
        let algorithm = table().products[0].algorithm.unwrap();
        assert!(algorithm.adds_in_fixed_order());
        for reduction in [1, 2, 4] {
            assert!(!ProductAlgorithm { reduction, ..algorithm }.adds_in_fixed_order());
        }
    }
}
