//! `llama-lite plan`.

use clap::Args;
use std::path::PathBuf;

/// `llama-lite plan`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  llama-lite plan --config configs/llama-1.7b.toml
  llama-lite plan --config my.toml --probe
  llama-lite plan --config my.toml --fit 16GB")]
pub struct Plan {
    /// Configuration, TOML or JSON
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Set one configuration key; may be repeated, later ones win
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Take a few steps on the run's own data, writing nothing, and tell time and memory from them
    #[arg(long)]
    pub probe: bool,
    /// Propose the largest micro-batch that fits into so much memory, such as 8GB or 8000000000
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub fit: Option<u64>,
}

/// A number of bytes, with MB, GB, MiB or GiB behind it if it has a unit.
fn bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "mb" => 1e6,
        "gb" => 1e9,
        "mib" => f64::from(1 << 20),
        "gib" => f64::from(1 << 30),
        _ => return Err("expected bytes, such as 8GB, 8GiB or 8000000000".into()),
    };
    let number: f64 =
        number.trim().parse().map_err(|_| "expected bytes, such as 8GB, 8GiB or 8000000000".to_owned())?;
    if number > 0.0 && (number * unit).is_finite() {
        Ok((number * unit) as u64)
    } else {
        Err("expected more than nothing".into())
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_have_units() {
        assert_eq!((bytes("8GB"), bytes("1.5 GiB"), bytes("70")), (Ok(8_000_000_000), Ok(1_610_612_736), Ok(70)));
        for wrong in ["", "GB", "8 stones", "-1", "nan", "1e400"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
