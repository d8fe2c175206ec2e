//! The feature `cuda` at build time: kernels are compiled to PTX, and NVIDIA's libraries are replaced by stand-ins that load the real ones
//! at the first call.
//!
//! PTX is compiled for sm_80; the driver translates it for newer GPUs. With the stand-ins one program also starts on machines without
//! CUDA, where a usual link ends in `error while loading shared libraries`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs, io};

const KERNELS: &str = "src/ops/cuda";
const NVCC_FLAGS: [&str; 4] = ["--ptx", "-O3", "-std=c++17", "-arch=compute_80"];

/// A library that cudarc links to, under the name of cudarc's module for it.
struct Library {
    module: &'static str,
    link_name: &'static str,
    /// Without the version where that is CUDA's own major version.
    soname: &'static str,
    /// What its functions return where the library is missing.
    status: u32,
}

const LIBRARIES: [Library; 5] = [
    // CUDA_ERROR_NO_DEVICE, CUBLAS_STATUS_NOT_INITIALIZED twice, CURAND_STATUS_INITIALIZATION_FAILED, NVRTC_ERROR_BUILTIN_OPERATION_FAILURE
    Library { module: "driver", link_name: "cuda", soname: "libcuda.so.1", status: 100 },
    Library { module: "cublas", link_name: "cublas", soname: "libcublas.so.", status: 1 },
    Library { module: "cublaslt", link_name: "cublasLt", soname: "libcublasLt.so.", status: 1 },
    Library { module: "curand", link_name: "curand", soname: "libcurand.so.10", status: 203 },
    Library { module: "nvrtc", link_name: "nvrtc", soname: "libnvrtc.so.", status: 7 },
];

pub(crate) fn build() -> Result<(), String> {
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDARC_CUDA_VERSION", "LLAMA_LITE_CUDA_LINK", "CUDNN_INCLUDE"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo::rustc-check-cfg=cfg(cuda_stand_ins)");
    let out = PathBuf::from(variable("OUT_DIR")?);
    let nvcc = find_nvcc()?;
    let version = text(run(Command::new(&nvcc).arg("--version"))?.stdout);
    compile_kernels(&nvcc, &version, &out)?;
    if cfg!(feature = "cudnn") {
        compile_cudnn(&nvcc, &out)?;
    }
    match env::var("LLAMA_LITE_CUDA_LINK").as_deref() {
        Ok("system") => Ok(()),
        Err(_) | Ok("" | "lazy") => link_stand_ins(&nvcc, &version, &out),
        Ok(other) => Err(format!("LLAMA_LITE_CUDA_LINK is `{other}`; it can be `lazy` (the default) or `system`")),
    }
}

fn find_nvcc() -> Result<PathBuf, String> {
    let on_path = env::var_os("PATH").into_iter().flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(|home| Path::new(&home).join("bin"));
    let mut candidates =
        env::var_os("NVCC").map(PathBuf::from).into_iter().chain(on_path.chain(homes).map(|d| d.join("nvcc")));
    candidates.find(|path| path.is_file()).ok_or_else(|| {
        "the feature `cuda` needs nvcc, which is not in NVCC, PATH or CUDA_HOME \
         (hint: scripts/cuda_toolkit.sh DIR puts together a compiler without root)"
            .to_string()
    })
}

/// Writes `kernels.rs` with the PTX of every `.cu`; what has not changed is not compiled again.
fn compile_kernels(nvcc: &Path, version: &str, out: &Path) -> Result<(), String> {
    let (sources, headers): (Vec<_>, Vec<_>) =
        list(Path::new(KERNELS))?.into_iter().filter(|p| has(p, "cu") || has(p, "cuh")).partition(|p| has(p, "cu"));
    let mut common = format!("{version}{}", NVCC_FLAGS.join(" "));
    for header in &headers {
        common += &read(header)?;
    }
    let mut table = String::new();
    let mut running = Vec::new();
    for source in &sources {
        println!("cargo:rerun-if-changed={}", source.display());
        let name = source.file_stem().unwrap_or_default().to_string_lossy();
        let ptx = out.join(format!("{name}.ptx"));
        table += &format!("    ({name:?}, include_str!({ptx:?})),\n");
        let stamp = Stamp { path: out.join(format!("{name}.stamp")), text: format!("{common}{}", read(source)?) };
        if !(stamp.holds() && ptx.is_file()) {
            let mut command = Command::new(nvcc);
            command.args(NVCC_FLAGS).arg("-o").arg(&ptx).arg(source);
            running.push((std::thread::spawn(move || run(&mut command)), stamp));
        }
    }
    for header in &headers {
        println!("cargo:rerun-if-changed={}", header.display());
    }
    for (thread, stamp) in running {
        thread.join().map_err(|_| "a panic while a kernel was compiled")??;
        stamp.set()?;
    }
    let rust =
        format!("/// Module names and the PTX of each.\npub(crate) const KERNELS: &[(&str, &str)] = &[\n{table}];\n");
    write(&out.join("kernels.rs"), &rust)
}

/// The shim over cuDNN, which loads the library at the first call. It is left out if nvcc is itself a stand-in.
fn compile_cudnn(nvcc: &Path, out: &Path) -> Result<(), String> {
    let source = Path::new(KERNELS).join("cudnn.cpp");
    println!("cargo:rerun-if-changed={}", source.display());
    if env::var_os("LLAMA_LITE_FAKE_NVCC").is_some() {
        return Ok(());
    }
    let given = env::var_os("CUDNN_INCLUDE").into_iter().flat_map(|list| env::split_paths(&list).collect::<Vec<_>>());
    let folders: Vec<PathBuf> = given.chain(include_folders(nvcc)?).collect();
    for header in ["cuda.h", "cudnn.h", "cudnn_frontend.h"] {
        let places = folders.iter().map(PathBuf::as_path).chain([Path::new("/usr/include")]);
        if !places.map(|folder| folder.join(header)).any(|path| path.is_file()) {
            return Err(format!(
                "the feature `cudnn` needs {header}, which is not in CUDNN_INCLUDE or beside nvcc \
                 (hint: scripts/cuda_toolkit.sh --cudnn DIR puts it there)"
            ));
        }
    }
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level_str("s").warnings(false).cargo_metadata(false).cpp_link_stdlib(None);
    let stamp = Stamp { path: out.join("cudnn.stamp"), text: format!("{folders:?} {}", read(&source)?) };
    if !stamp.holds() {
        let shim = build.clone().includes(&folders).file(&source).try_compile("llama_lite_cudnn");
        shim.map_err(|e| format!("{}: {e}", source.display()))?;
        stamp.set()?;
    }
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static=llama_lite_cudnn");
    // Linked statically, so that the program starts where there is no libstdc++.
    let compiler = build.try_get_compiler().map_err(|e| e.to_string())?;
    let found = text(run(compiler.to_command().arg("-print-file-name=libstdc++.a"))?.stdout);
    match Path::new(found.trim()).parent().filter(|folder| folder.is_absolute()) {
        Some(folder) => {
            println!("cargo:rustc-link-search=native={}", folder.display());
            println!("cargo:rustc-link-lib=static:-bundle=stdc++");
        }
        None => println!("cargo:rustc-link-lib=dylib=stdc++"),
    }
    Ok(())
}

/// Where nvcc has its headers.
fn include_folders(nvcc: &Path) -> Result<Vec<PathBuf>, String> {
    let words = dry_run(nvcc)?;
    let line = words.lines().find_map(|line| line.strip_prefix("#$ INCLUDES=")).unwrap_or_default();
    Ok(line.split(['"', ' ']).filter_map(|word| word.strip_prefix("-I")).map(PathBuf::from).collect())
}

/// Links the stand-ins before cudarc's `-lcuda` and the like, so that no symbol is left for those.
fn link_stand_ins(nvcc: &Path, version: &str, out: &Path) -> Result<(), String> {
    let target = variable("TARGET")?;
    if !target.starts_with("x86_64-") || !target.contains("linux") {
        return Err(format!(
            "CUDA's libraries are loaded lazily on x86_64 Linux only, not on {target} \
             (hint: LLAMA_LITE_CUDA_LINK=system links to the installed ones)"
        ));
    }
    let major = cuda_major(version)?;
    let stand_in = Path::new(KERNELS).join("stand_in.c");
    let locked = read(Path::new("Cargo.lock")).unwrap_or_default();
    let stamp = Stamp {
        path: out.join("stand_in.stamp"),
        text: format!("{major} {} {locked}", read(&stand_in)? + include_str!("build.rs")),
    };
    if !stamp.holds() {
        write(&out.join("entries.h"), &entries(&cudarc_sources()?, major)?)?;
        cc::Build::new()
            .file(&stand_in)
            .include(out)
            .cargo_metadata(false)
            .try_compile("llama_lite_cuda")
            .map_err(|e| format!("{}: {e}", stand_in.display()))?;
        // An empty library for the `-l` options of cudarc and candle-kernels.
        for name in LIBRARIES.iter().map(|l| l.link_name).chain(["cudart"]) {
            write(&out.join(format!("lib{name}.a")), "!<arch>\n")?;
        }
        stamp.set()?;
    }
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static:+whole-archive=llama_lite_cuda");
    println!("cargo:rustc-cfg=cuda_stand_ins");
    println!("cargo:rustc-env=LLAMA_LITE_CUDA_MAJOR={major}");
    link_runtime(nvcc, out)
}

/// The CUDA runtime, which only candle's own quantised kernels call (scripts/lean_nvcc leaves them out), from nvcc's folders.
fn link_runtime(nvcc: &Path, out: &Path) -> Result<(), String> {
    let words = dry_run(nvcc)?;
    let folders = words.lines().find_map(|line| line.strip_prefix("#$ LIBRARIES=")).unwrap_or_default();
    let archive = folders
        .split(['"', ' '])
        .filter_map(|word| word.strip_prefix("-L"))
        .map(|folder| Path::new(folder).join("libcudart_static.a"))
        .find(|path| path.is_file());
    if let Some(archive) = archive {
        fs::copy(&archive, out.join("libcudart.a")).map_err(|e| format!("{}: {e}", archive.display()))?;
        println!("cargo:rustc-link-lib=static=cudart");
    }
    Ok(())
}

/// nvcc's dry run, which names the folders that it uses.
fn dry_run(nvcc: &Path) -> Result<String, String> {
    Ok(text(run(Command::new(nvcc).args(["--dryrun", "-c", "-x", "cu", "/dev/null"]))?.stderr))
}

/// The major version of CUDA whose functions cudarc declares: CUDARC_CUDA_VERSION, or else nvcc's.
fn cuda_major(version: &str) -> Result<u32, String> {
    if let Ok(version_set) = env::var("CUDARC_CUDA_VERSION") {
        return version_set
            .parse::<u32>()
            .map(|v| v / 1000)
            .map_err(|_| format!("CUDARC_CUDA_VERSION is `{version_set}`"));
    }
    let release = version.split("release ").nth(1).and_then(|rest| rest.split('.').next()?.parse().ok());
    release.ok_or_else(|| format!("`nvcc --version` names no release: {version}"))
}

/// The folder of cudarc's sources, which declare the functions that the stand-ins replace.
fn cudarc_sources() -> Result<PathBuf, String> {
    let arguments = ["metadata", "--format-version=1", "--features=cuda", "--filter-platform"];
    let output = run(Command::new(variable("CARGO")?).args(arguments).arg(variable("TARGET")?))?;
    let packages = text(output.stdout);
    let manifests = packages.split("\"manifest_path\":\"").skip(1).filter_map(|rest| rest.split('"').next());
    let folders = manifests.filter_map(|path| Path::new(path).parent());
    let cudarc = folders.into_iter().find(|folder| is_cudarc(folder));
    cudarc.map(|folder| folder.join("src")).ok_or("cargo metadata has no cudarc".into())
}

/// Whether a package's folder is cudarc's, with or without its version.
fn is_cudarc(folder: &Path) -> bool {
    folder.file_name().is_some_and(|name| name == "cudarc" || name.to_string_lossy().starts_with("cudarc-"))
}

/// The text that stand_in.c includes: a LIBRARY for each library and an ENTRY for each of its functions.
fn entries(cudarc: &Path, major: u32) -> Result<String, String> {
    let mut libraries = String::new();
    let mut functions = String::new();
    let mut count = 0;
    for (number, library) in LIBRARIES.iter().enumerate() {
        let version = if library.soname.ends_with('.') { major.to_string() } else { String::new() };
        libraries += &format!("LIBRARY({number}, \"{}{version}\", {})\n", library.soname, library.status);
        let path = cudarc.join(library.module).join("sys/mod.rs");
        let source = read(&path)?;
        let declared = declarations(&source);
        if declared.is_empty() {
            return Err(format!("{} declares no functions in the way that was expected", path.display()));
        }
        for (name, returns_text) in declared {
            functions += &format!("ENTRY({count}, {number}, {name}, {})\n", u8::from(returns_text));
            count += 1;
        }
    }
    Ok(libraries + &functions)
}

/// The functions in `extern "C"` blocks, and whether each one returns a string.
fn declarations(source: &str) -> BTreeMap<&str, bool> {
    let lines = source.lines().map(str::trim);
    let declared = lines.clone().zip(lines.skip(1)).filter(|(block, _)| *block == "extern \"C\" {");
    declared
        .filter_map(|(_, line)| Some((line.strip_prefix("fn ")?.split('(').next()?, line.ends_with("c_char;"))))
        .collect()
}

/// A fingerprint of inputs: an output is made again only when it changes.
struct Stamp {
    path: PathBuf,
    text: String,
}

impl Stamp {
    fn holds(&self) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|text| text == self.text)
    }

    fn set(&self) -> Result<(), String> {
        write(&self.path, &self.text)
    }
}

fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    let words = text(output.stderr.clone());
    if !output.status.success() {
        // cargo shows an error as one line; the program's own output is printed before it.
        eprintln!("{words}");
        return Err(format!("{} ended with {}", command.get_program().display(), output.status));
    }
    Ok(output)
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    Ok(paths)
}

fn has(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e == extension)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("{name} is not set"))
}
