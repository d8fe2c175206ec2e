//! The algorithms of a run's matrix products on a GPU: a resume computes by those that the run had before.
//!
//! They are in every checkpoint; `products.json` is for a run that never saved, for other runs (LLAMA_LITE_PRODUCTS=FILE) and for people.

use super::session::Session;
use crate::ops::product_algorithms::ProductAlgorithms;
use crate::ops::products::{ProductSetting, forget_algorithms, product_setting, use_algorithms};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::read_bounded;
use anyhow::Result;
use std::path::Path;

pub const PRODUCTS: &str = "products.json";

/// The largest such file that is read, in bytes.
const MAX_PRODUCTS: u64 = 4 << 20;

/// Begins a run in this process with the algorithms that it had before, or with those that LLAMA_LITE_PRODUCTS names.
///
/// # Errors
/// [`Exit::Config`] if that file is none, or is for another card.
pub fn use_stored_products(stored: Option<&ProductAlgorithms>, session: &Session) -> Result<()> {
    // Those of an earlier run of this process.
    forget_algorithms();
    let is_cpu = session.device.is_cpu();
    let given = session.group.on_first("LLAMA_LITE_PRODUCTS", || match product_setting() {
        ProductSetting::File(path) if !is_cpu => read_given(&path).map(Some),
        _ => Ok(None),
    })?;
    if is_cpu || product_setting() == ProductSetting::Default {
        return Ok(());
    }
    let Some(table) = given.as_ref().or(stored) else { return Ok(()) };
    match use_algorithms(&session.device, table) {
        Ok(refused) => {
            refused.iter().for_each(|line| session.note(&format!("note: cuBLAS chooses the algorithm of {line}")));
            Ok(())
        }
        Err(why) if given.is_some() => {
            let message = format!("LLAMA_LITE_PRODUCTS: the algorithms of that run cannot be used: {why}");
            Err(fail(Exit::Config, message).hint("unset it: algorithms are then chosen for this card").into())
        }
        Err(why) => {
            session.note(&format!("note: algorithms of matrix products are chosen anew: {why}"));
            Ok(())
        }
    }
}

fn read_given(path: &Path) -> Result<ProductAlgorithms> {
    let bytes = read_bounded(path, MAX_PRODUCTS, true)?;
    let table = ProductAlgorithms::parse(&bytes);
    table.map_err(|what| {
        fail(Exit::Config, format!("{}: not the {PRODUCTS} of a run: {what}", path.display()))
            .hint("LLAMA_LITE_PRODUCTS is `default` or the path of such a file")
            .into()
    })
}

/// The algorithms of a run that never saved; none if there are none or if they cannot be read.
///
/// # Errors
/// Those of the ranks.
pub fn read_products(run_dir: &Path, session: &Session) -> Result<Option<ProductAlgorithms>> {
    let path = run_dir.join(PRODUCTS);
    session.group.on_first(PRODUCTS, || {
        if session.device.is_cpu() || !path.exists() {
            return Ok(None);
        }
        let read = read_bounded(&path, MAX_PRODUCTS, false).map_err(|error| format!("{error:#}"));
        let table = read
            .and_then(|bytes| ProductAlgorithms::parse(&bytes).map_err(|what| format!("{}: {what}", path.display())));
        // Nothing was saved that has been computed by them.
        Ok(table
            .map_err(|what| session.note(&format!("note: algorithms of matrix products are chosen anew: {what}")))
            .ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Console;
    use crate::runtime::error::failure_in;
    use candle_core::Device;

    #[test]
    fn a_file_that_is_no_table_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("products.json");
        std::fs::write(&path, "{\"gpu\": \"a card\"}").unwrap();
        let error = read_given(&path).unwrap_err();
        assert_eq!(failure_in(&error).unwrap().exit, Exit::Config);
        assert!(
            error.to_string().ends_with(
                "products.json: not the products.json of a run: missing field `library` at line 1 column 17"
            ),
            "{error}"
        );
        std::fs::write(&path, vec![b' '; MAX_PRODUCTS as usize + 1]).unwrap();
        assert_eq!(failure_in(&read_given(&path).unwrap_err()).unwrap().exit, Exit::Data);
    }

    #[test]
    fn a_cpu_has_no_algorithms() {
        let session = Session::new(&Device::Cpu, Console { quiet: true, terminal: false, color: false });
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(PRODUCTS), "damaged").unwrap();
        assert_eq!(read_products(dir.path(), &session).unwrap(), None);
        use_stored_products(Some(&ProductAlgorithms::default()), &session).unwrap();
    }
}
