//! Arguments that cannot be used die in one sentence, before anything is loaded.

use clap::{Command, FromArgMatches, Parser};
use moeshard::arg_error::ArgError;
use moeshard::cli::{Action, Cli};
use moeshard::serve::{ServeArgs, ServeConfig};

use crate::support::{fails, golden, model, program, said, shown, succeeds, text};

fn serve_args(args: &[&str]) -> ServeArgs {
    let cli = Cli::try_parse_from(["moeshard", "serve"].iter().chain(args)).expect("flags");
    match cli.action {
        Action::Serve(args) => *args,
        other => panic!("{other:?}"),
    }
}

fn serve(args: &[&str]) -> Result<ServeConfig, ArgError> {
    ServeConfig::try_from(serve_args(args))
}

/// That `serve` refuses `args` in one line that contains `expect`.
#[track_caller]
fn check(args: &[&str], expect: &str) {
    let error = serve(args).expect_err(expect).to_string();
    assert!(error.contains(expect), "{args:?}: {error}");
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn impossible_values_are_named_with_what_is_possible() {
    check(&["--ranks", "0"], "--ranks must be at least 1, got 0");
    check(&["--threads", "0"], "--threads must be at least 1, got 0");
    check(
        &["--expert-capacity", "0"],
        "--expert-capacity must be at least 1, got 0",
    );
    check(&["--overlap", "0"], "--overlap must be at least 1, got 0");
    check(
        &["--overlap", "often"],
        "--overlap must be auto, off or a number of tokens, got `often`",
    );
    check(
        &["--max-batch-tokens", "0"],
        "--max-batch-tokens must be at least 1, got 0",
    );
    check(
        &["--max-queue-tokens", "0"],
        "--max-queue-tokens must be at least 1, got 0",
    );
    check(
        &["--payload-limit", "0"],
        "--payload-limit must be at least 1, got 0",
    );
    check(
        &["--device", "cpu", "--gpus", "1"],
        "--gpus 1 has no effect without --device cuda",
    );
    check(
        &["--device", "cuda", "--gpus", "0"],
        "--gpus must be at least 1, got 0",
    );
    check(
        &["--ranks", "2", "--shares", "3,1,1"],
        "--shares must be one for each of 2 ranks, got 3",
    );
    check(
        &["--ranks", "2", "--shares", "3,0"],
        "--shares a share must be above 0, got 0",
    );
    check(
        &["--ranks", "2", "--shares", "3,1", "--experts", "parallel"],
        "--shares 3,1 has no effect without --experts sharded; got --experts parallel",
    );
    check(
        &["--cuda-libs", "/opt/cuda/lib64"],
        "--cuda-libs /opt/cuda/lib64 has no effect without --gpus; got --device cpu",
    );
    check(
        &["--device", "tpu"],
        "--device must be cpu or cuda, got `tpu`",
    );
    check(
        &["--capacity-factor", "1.5"],
        "--capacity-factor 1.5 has no effect without --experts capacity; got --experts auto",
    );
    check(
        &["--experts", "capacity", "--capacity-factor=-1"],
        "--capacity-factor must be above 0, got -1",
    );
    check(
        &["--experts", "spread"],
        "sharded, parallel, capacity or replicated, got `spread`",
    );
    check(
        &["--pooling", "max"],
        "--pooling must be cls, mean or last-token, got `max`",
    );
}

#[test]
fn a_server_that_cannot_be_is_refused() {
    check(
        &["--hostname", "my.host"],
        "--hostname must be an IP address",
    );
    check(&["--api-key", ""], "--api-key must not be empty");
    check(&["--api-key", "\n"], "--api-key must not be empty");
    for key in ["two words", "schlüssel", "a\u{7f}"] {
        let error = serve(&["--api-key", key]).expect_err(key).to_string();
        assert!(error.contains("must be visible ASCII") && !error.contains(key));
    }
    check(&["--served-model-name", ""], "must not be empty");
    for flag in ["--threads", "--tokenization-workers"] {
        let expect = format!("{flag} must be at most 1024, got 100000");
        check(&[flag, "100000"], &expect);
    }
    for origin in [
        "example.org",
        "https://",
        "https://example.org/",
        "https://example.org:port",
        "*,https://example.org",
        "https://*",
        "null",
    ] {
        check(
            &["--cors-allow-origin", origin],
            "--cors-allow-origin must be * alone or origins as",
        );
    }
    check(
        &["--model", "/no/such/folder"],
        "`/no/such/folder` is neither a folder",
    );
    check(&["--model", "a/b/c"], "`a/b/c` is neither a folder");
    check(
        &["--revision", "v2"],
        "--revision v2 has no effect without a --model on the hub",
    );
}

#[test]
fn possible_values_are_taken_as_they_are_meant() {
    let config = serve(&["--api-key", "s3cret\n", "--threads", "1024"]).expect("a configuration");
    let key = config.http.api_key.expect("a key");
    assert!(key.matches(b"s3cret") && !key.matches(b"s3cret\n"));
    assert_eq!(config.http.shutdown_timeout.as_secs(), 25);
    for (origins, n) in [
        ("*", 0),
        (
            "https://example.org,http://localhost:8080,http://[::1]:80,http://[::1]",
            4,
        ),
    ] {
        let config = serve(&["--cors-allow-origin", origins]).expect("a configuration");
        assert_eq!(config.http.cors_allow_origin.len(), n);
    }
}

#[test]
fn the_built_in_model_has_the_parameters_of_its_card() {
    let card = include_str!("../../../../models/mini/README.md");
    let shown = shown(&succeeds(&["inspect"]));
    assert!(
        card.contains("9,963,213") && shown.contains("9,963,213"),
        "{shown}"
    );
}

#[test]
fn dtypes_have_short_and_long_names() {
    for name in ["f32", "float32", "bf16", "bfloat16", "f16", "float16"] {
        assert!(serve(&["--dtype", name]).is_ok(), "{name}");
    }
    let error = Cli::try_parse_from(["moeshard", "serve", "--dtype", "int8"]);
    assert!(
        error
            .expect_err("no dtype")
            .to_string()
            .contains("bfloat16")
    );
}

#[test]
fn names_of_text_embeddings_inference_are_understood() {
    let args = [
        "--model-id",
        "a/b",
        "--huggingface-hub-cache",
        "/c",
        "--auto-truncate",
    ];
    let config = serve(&args).expect("a configuration");
    assert_eq!(config.model.hub.cache_dir.to_str(), Some("/c"));
    assert!(config.http.auto_truncate);
    let config = serve(&["--auto-truncate", "false"]).expect("a configuration");
    assert!(!config.http.auto_truncate);
    assert_eq!(
        (config.http.payload_limit, config.address.port()),
        (32_000_000, 3000)
    );
}

#[test]
fn every_flag_has_a_variable() {
    // Those that are set here, as they are when data is at hand, are set and fit.
    let is_set = |name: &str| name.starts_with("MOESHARD_") && std::env::var_os(name).is_some();
    let command = moeshard::cli::command(&is_set);
    command.get_subcommands().for_each(flags_have_variables);
}

/// Also those of the commands inside.
fn flags_have_variables(action: &Command) {
    if action.get_name() == "help" {
        return;
    }
    let flags = action.get_arguments().filter(|arg| !arg.is_positional());
    for arg in flags.filter(|arg| arg.get_id() != "help") {
        let variable = arg
            .get_env()
            .map(|name| name.to_string_lossy().into_owned());
        let expect = format!("MOESHARD_{}", arg.get_id().as_str().to_ascii_uppercase());
        assert_eq!(variable, Some(expect), "{}", action.get_name());
    }
    action.get_subcommands().for_each(flags_have_variables);
}

#[test]
fn secrets_are_not_shown() {
    let args = serve_args(&["--api-key", "s3cret", "--hf-token", "hf_s3cret"]);
    assert!(!format!("{args:?}").contains("s3cret"));
    let config = ServeConfig::try_from(args).expect("a configuration");
    assert!(!format!("{config:?}").contains("s3cret"));
    let mut command = moeshard::cli::command(&|_| true);
    let serve = command.find_subcommand_mut("serve").expect("serve");
    for id in ["api_key", "hf_token"] {
        let arg = serve
            .get_arguments()
            .find(|arg| arg.get_id() == id)
            .expect(id);
        assert!(arg.is_hide_env_values_set(), "{id}");
    }
    let matches = moeshard::cli::command(&|_| false).try_get_matches_from(["moeshard", "doctor"]);
    assert!(Cli::from_arg_matches(&matches.expect("matches")).is_ok());
}

#[test]
fn layouts_that_a_model_does_not_allow_are_named_with_both_numbers() {
    let folder = model("nomic_moe");
    let path = text(folder.path());
    fails(
        &["verify", "--model", path, "--ranks", "41"],
        "d_ff 40 cannot be split over 41 ranks",
    );
    fails(
        &[
            "verify",
            "--model",
            path,
            "--ranks",
            "6",
            "--experts",
            "parallel",
        ],
        "5 experts cannot be dealt out to 6 ranks",
    );
    fails(
        &["verify", "--model", path, "--max-length", "65"],
        "--max-length 65 is above what the model takes, 64",
    );
}

#[test]
fn a_model_is_verified_at_any_world_size() {
    for name in ["nomic_moe", "switch", "nllb_moe", "bert_classify"] {
        let path = golden(name);
        let path = text(&path);
        for args in [
            &["--ranks", "1"][..],
            &["--ranks", "3"],
            &["--ranks", "2", "--experts", "parallel"],
            &["--device", "emulated"],
            &["--device", "emulated", "--ranks", "4"],
        ] {
            let args = [&["verify", "--model", path], args].concat();
            let table = shown(&succeeds(&args));
            assert!(
                table.contains("final norm") && table.contains("every error"),
                "{table}"
            );
        }
    }
    // The built-in model is stored as bf16, and still verified exactly.
    for args in [&[][..], &["--dtype", "bf16"]] {
        let table = shown(&succeeds(&[&["verify"], args].concat()));
        assert!(table.contains("every error"), "{table}");
    }
    let path = golden("nomic_moe");
    let path = text(&path);
    fails(
        &["verify", "--model", path, "--tolerance", "1e-12"],
        "above the tolerance of 1.0e-12",
    );
    let capacity = [
        "--ranks",
        "2",
        "--experts",
        "capacity",
        "--capacity-factor",
        "0.5",
    ];
    fails(
        &[&["verify", "--model", path], &capacity[..]].concat(),
        "--experts capacity drops tokens that the reference keeps",
    );
}

#[test]
fn bench_measures_gpus_by_operation() {
    let path = golden("nomic_moe");
    let shown = shown(&succeeds(&[
        "bench",
        "--model",
        text(&path),
        "--device",
        "emulated",
        "--dtype",
        "bf16",
        "--shape",
        "1x3",
        "--rounds",
        "1",
    ]));
    for expect in [
        "bfloat16 on emulated",
        "1 × 3:",
        "expert_ffn 48→40→48",
        "attention",
        "of peak",
    ] {
        assert!(shown.contains(expect), "{shown}");
    }
}

#[test]
fn inspect_and_doctor_say_what_there_is() {
    let inspected = shown(&succeeds(&[
        "inspect",
        "--model",
        text(&golden("nomic_moe")),
    ]));
    for expect in [
        "experts      5, d_ff 40",
        "top_k        2",
        "float32",
        "none (no tokenizer.json)",
    ] {
        assert!(inspected.contains(expect), "{inspected}");
    }
    let machine = shown(&succeeds(&["doctor", "--port", "0"]));
    for expect in [
        "NVIDIA driver",
        "NCCL",
        "CUDA kernels",
        "no CUDA driver",
        "would use",
    ] {
        assert!(machine.contains(expect), "{machine}");
    }
}

#[test]
fn several_processes_that_cannot_work_together_say_what_they_need() {
    let check = |variables: &[(&str, &str)], command: &[&str], expect: &str| {
        let output = program(command).envs(variables.iter().copied()).output();
        let output = output.expect("the program runs");
        let said = said(&output);
        let last = said.lines().last().unwrap_or_default();
        assert!(!output.status.success() && last.contains(expect), "{said}");
    };
    let torchrun = [("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a")];
    let slurm = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2")];
    check(
        &slurm,
        &["serve"],
        "srun has started 2 processes, and nothing says where the first one is",
    );
    check(
        &slurm,
        &["serve", "--leader", "node-1:port"],
        "--leader must be the HOST or HOST:PORT of rank 0",
    );
    check(
        &torchrun,
        &["serve", "--ranks", "4"],
        "--ranks 4 in a job of 2",
    );
    let group = [("LWS_WORKER_INDEX", "0"), ("LWS_GROUP_SIZE", "2")];
    check(
        &group,
        &["serve"],
        "a LeaderWorkerSet has started 2 processes",
    );
    check(
        &[("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "2")],
        &["serve"],
        "OMPI_COMM_WORLD_RANK is 2 and OMPI_COMM_WORLD_SIZE 2: ranks count from 0",
    );
    let input = ["--input", "-", "--output", "-"];
    for command in ["embed", "classify"] {
        let expect =
            format!("torchrun has started 2 processes, and `moeshard {command}` runs in one");
        check(&torchrun, &[&[command][..], &input].concat(), &expect);
    }
    check(&torchrun, &["verify"], "`moeshard verify` runs in one");
}
