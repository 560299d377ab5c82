//! llama.cpp's own measurements, run as child processes.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tokio::process::Command;

/// Prompts and single tokens of one sequence.
const BENCH: &str = "llama-bench";
/// Sequences that decode together.
const BATCHED: &str = "llama-batched-bench";
/// Lines of a failed program that are shown.
const LAST_LINES: usize = 8;

/// A build of llama.cpp, and how it runs one model.
#[derive(Clone, Debug)]
pub struct LlamaCpp {
    /// Folder of its programs.
    pub bin: PathBuf,
    /// GGUF file.
    pub model: PathBuf,
    /// Threads that compute.
    pub threads: usize,
}

/// A rate, and what else the program says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Rate {
    /// Tokens per second.
    pub tokens_per_s: f64,
    /// The JSON object that it printed.
    pub said: Value,
}

impl LlamaCpp {
    /// Checks that the programs are there.
    ///
    /// # Errors
    /// With what to do, if one is missing.
    pub fn check(bin: &Path) -> anyhow::Result<()> {
        for program in [BENCH, BATCHED] {
            ensure!(
                bin.join(program).is_file(),
                "{} is missing: build llama.cpp (cmake --build build --target {BENCH} {BATCHED}) and give \
                 its build/bin as --bin",
                bin.join(program).display()
            );
        }
        Ok(())
    }

    /// Prompt tokens per second of a prompt of `prompt` tokens, after one that does not count.
    ///
    /// # Errors
    /// If the program fails; with its last lines.
    pub async fn prefill(&self, prompt: usize) -> anyhow::Result<Rate> {
        self.bench(&[("-p", prompt), ("-n", 0)]).await
    }

    /// Tokens per second over `batch` sequences that decode `tokens` tokens each, from position `context`
    /// on.
    ///
    /// # Errors
    /// If the program fails; with its last lines.
    pub async fn decode(&self, batch: usize, context: usize, tokens: usize) -> anyhow::Result<Rate> {
        if batch == 1 {
            return self.bench(&[("-p", 0), ("-n", tokens), ("-d", context)]).await;
        }
        let reach = batch * (context + tokens);
        let counts = [("-c", reach), ("-npp", context), ("-ntg", tokens), ("-npl", batch)];
        let mut arguments = arguments(&counts);
        // The prompt is computed once and copied, which takes a while less and leaves the same caches.
        arguments.extend(["-pps", "--output-format", "jsonl"].map(OsString::from));
        let said = self.run(BATCHED, arguments).await?;
        batched_rate(&said).with_context(|| unreadable(BATCHED, &said))
    }

    async fn bench(&self, counts: &[(&str, usize)]) -> anyhow::Result<Rate> {
        let mut arguments = arguments(counts);
        arguments.extend(["-r", "1", "-o", "json"].map(OsString::from));
        let said = self.run(BENCH, arguments).await?;
        bench_rate(&said).with_context(|| unreadable(BENCH, &said))
    }

    /// What a program prints. It is killed when the future is dropped.
    async fn run(&self, program: &str, arguments: Vec<OsString>) -> anyhow::Result<String> {
        let mut command = Command::new(self.bin.join(program));
        command.arg("-m").arg(&self.model).arg("-t").arg(self.threads.to_string()).args(arguments);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await;
        let output =
            output.with_context(|| format!("{} cannot be started", self.bin.join(program).display()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = [&output.stdout[..], &output.stderr].concat();
        let said = last_lines(&String::from_utf8_lossy(&said));
        bail!("{program} refuses {} ({}):\n{said}", self.model.display(), output.status)
    }
}

fn arguments(counts: &[(&str, usize)]) -> Vec<OsString> {
    counts.iter().flat_map(|(option, count)| [(*option).into(), count.to_string().into()]).collect()
}

fn unreadable(program: &str, said: &str) -> String {
    format!("{program} printed no rate that can be read; is it of another version?\n{}", last_lines(said))
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

/// The one test of a JSON list.
fn bench_rate(said: &str) -> Option<Rate> {
    let mut tests: Vec<Value> = serde_json::from_str(said.trim()).ok()?;
    let said = tests.pop()?;
    Some(Rate { tokens_per_s: said["avg_ts"].as_f64()?, said })
}

/// The last line that is a JSON object with a rate.
fn batched_rate(said: &str) -> Option<Rate> {
    said.lines().rev().find_map(|line| {
        let said: Value = serde_json::from_str(line.trim()).ok()?;
        Some(Rate { tokens_per_s: said["speed_tg"].as_f64()?, said })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() {
        let said = r#"[ { "n_prompt": 512, "n_gen": 0, "avg_ts": 250.5, "samples_ts": [ 250.5 ] } ]"#;
        assert_eq!(bench_rate(said).map(|rate| rate.tokens_per_s), Some(250.5));
        let said = "\nloading\n{\"pl\": 8, \"speed_pp\": 200.0, \"speed_tg\": 98.25}\n\ndone\n";
        assert_eq!(batched_rate(said).map(|rate| rate.tokens_per_s), Some(98.25));
        assert_eq!((bench_rate("[]"), batched_rate("{\"pl\": 8}\n")), (None, None));
    }

    #[test]
    fn a_missing_program_is_named_with_what_to_do() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let error = LlamaCpp::check(directory.path()).expect_err("nothing is there").to_string();
        assert!(error.contains("llama-bench is missing: build llama.cpp"), "{error}");
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_program_that_fails_is_quoted() {
        let directory = tempfile::tempdir().expect("temporary directory");
        std::os::unix::fs::symlink("/bin/cat", directory.path().join(BENCH)).expect("a link");
        let here = LlamaCpp { bin: directory.path().to_owned(), model: "no.gguf".into(), threads: 1 };
        let error = here.prefill(4).await.expect_err("cat has no such options").to_string();
        assert!(error.contains("llama-bench refuses no.gguf (exit status: 1):\n"), "{error}");
        assert!(error.contains("option"), "{error}");
    }
}
