//! Tests of the command line: defaults, places of flags, and what counts as wrong usage.

use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::cli::{Cli, Command, Global};
use crate::metrics::Color;
use crate::ops::device::DeviceChoice;
use clap::Parser;
use std::path::PathBuf;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("llama-lite").chain(line.split_whitespace()))
}

#[test]
fn definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_shows_an_example_and_pretrain_every_key() {
    let mut cli = Cli::command();
    cli.build();
    let mut commands: Vec<_> = cli.get_subcommands().filter(|command| command.get_name() != "help").cloned().collect();
    let data = commands.iter().position(|command| command.get_name() == "data").unwrap();
    let nested = commands.remove(data);
    commands.extend(nested.get_subcommands().filter(|command| command.get_name() != "help").cloned());
    assert_eq!(commands.len(), 14);
    for mut command in commands {
        let name = command.get_name().to_string();
        let help = command.render_help().to_string();
        assert!(help.contains("Example") && help.contains(&format!("{name} ")), "{name}: {help}");
    }
    for name in ["pretrain", "sft"] {
        let help = cli.find_subcommand_mut(name).unwrap().render_long_help().to_string();
        assert!(help.contains("grad_clip (number; 1.0)") && help.contains("Examples:"), "{help}");
    }
}

#[test]
fn pretrain_takes_its_run_directory_from_the_configuration() {
    let Command::Pretrain(args) = parse("pretrain --config configs/a.toml --set a.b=1 --set c.d=x=y").unwrap().command
    else {
        panic!("another command")
    };
    assert_eq!(args.run_dir(), PathBuf::from("runs/a"));
    assert_eq!(args.set, ["a.b=1", "c.d=x=y"]);
    let Command::Pretrain(args) = parse("pretrain --config a.toml --out there").unwrap().command else {
        panic!("another command")
    };
    assert_eq!(args.run_dir(), PathBuf::from("there"));
}

#[test]
fn sample_has_the_documented_defaults() {
    let Command::Sample(args) = parse("sample --ckpt x").unwrap().command else { panic!("another command") };
    assert_eq!((args.max_tokens, args.top_k, args.num_samples.get(), args.seed), (128, 50, 1, None));
    assert_eq!((args.temperature, args.top_p, args.min_p, args.repetition_penalty), (0.8, 1.0, 0.0, 1.0));
    assert!(!args.greedy && !args.json && args.prompt.is_none() && args.prompt_file.is_none());
}

#[test]
fn global_flags_stand_before_or_behind_the_command() {
    for line in ["--device cuda:3 --threads 2 doctor", "doctor --threads 2 --device cuda:3"] {
        let global = parse(line).unwrap().global;
        assert_eq!((global.device, global.threads.unwrap().get()), (DeviceChoice::Gpu(3), 2), "{line}");
    }
    let global = parse("doctor").unwrap().global;
    assert_eq!(global, Global { device: DeviceChoice::Auto, threads: None, quiet: false, color: Color::Auto });
    assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda));
}

#[test]
fn many_values_need_no_repeated_flag() {
    let Command::Eval(args) = parse("eval --data a b --ckpt x").unwrap().command else { panic!("another command") };
    assert_eq!(args.data, [PathBuf::from("a"), PathBuf::from("b")]);
}

#[test]
fn wrong_usage_is_refused() {
    for (line, kind) in [
        ("pretrain", ErrorKind::MissingRequiredArgument),
        ("resume --set a.b=1", ErrorKind::MissingRequiredArgument),
        ("eval --ckpt x", ErrorKind::MissingRequiredArgument),
        ("sample --ckpt x --prompt a --prompt-file b", ErrorKind::ArgumentConflict),
        ("sample --ckpt x --temperature -1", ErrorKind::ValueValidation),
        ("sample --ckpt x --temperature nan", ErrorKind::ValueValidation),
        ("sample --ckpt x --top-p 0", ErrorKind::ValueValidation),
        ("sample --ckpt x --min-p 1", ErrorKind::ValueValidation),
        ("sample --ckpt x --repetition-penalty 0", ErrorKind::ValueValidation),
        ("sample --ckpt x --num-samples 0", ErrorKind::ValueValidation),
        ("doctor --device cuda:", ErrorKind::ValueValidation),
        ("doctor --device cuda:-1", ErrorKind::ValueValidation),
        ("doctor --device tpu", ErrorKind::ValueValidation),
        ("doctor --threads 0", ErrorKind::ValueValidation),
        ("export --ckpt x --out y --dtype f64", ErrorKind::InvalidValue),
        ("data prepare --input a --tokenizer gpt2", ErrorKind::MissingRequiredArgument),
        ("train --config x", ErrorKind::InvalidSubcommand),
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.kind(), kind, "{line}");
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}
