//! What a library beside candle needs to work in the order of a GPU's stream: the stream, addresses of tensors, and when the work that
//! was queued is done.

#[cfg(feature = "cuda")]
pub use super::cuda::{Mark, Stream};
#[cfg(not(feature = "cuda"))]
pub use without_cuda::{NoMark as Mark, NoStream as Stream};

#[cfg(not(feature = "cuda"))]
mod without_cuda {
    use candle_core::{Device, Result, Tensor, bail};
    use std::convert::Infallible;
    use std::ffi::c_void;

    /// The stream of a GPU, which this build cannot have.
    #[derive(Debug)]
    pub struct NoStream(Infallible);

    /// A place in it.
    #[derive(Debug)]
    pub struct NoMark(Infallible);

    impl NoStream {
        /// # Errors
        /// Always.
        pub fn on(_: &Device) -> Result<Self> {
            bail!("this build has no CUDA support")
        }

        pub fn handle(&self) -> Result<*mut c_void> {
            match self.0 {}
        }

        pub fn address(&self, _: &Tensor) -> Result<*mut c_void> {
            match self.0 {}
        }

        pub fn upload(&self, _: &[u8]) -> Result<Tensor> {
            match self.0 {}
        }

        pub fn empty(&self, _: usize) -> Result<Tensor> {
            match self.0 {}
        }

        pub fn mark(&self) -> Result<NoMark> {
            match self.0 {}
        }
    }

    impl NoMark {
        pub fn is_reached(&self) -> Result<bool> {
            match self.0 {}
        }
    }
}
