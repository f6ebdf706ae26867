//! What has to be done as root on a machine that is pushed to: by one fixed program in its Nix store, through sudo, doas or run0
//! if it is not root who logs in.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bento_store::content_address::{ContentAddress, ContentAddressMethod};
use bento_store::hash::HashAlgo;
use bento_store::nar::{self, NarError};
use bento_store::store_path::StoreDir;
use serde::{Deserialize, Serialize};

use crate::ansi::filter_escapes;
use crate::process::Spoken;
use crate::push::remote::Remote;
use crate::store_path::StorePath;

/// The program.
pub const HELPER: &str = include_str!("helper.sh");
/// Its name in the store.
const NAME: &str = "bento-push";
/// What its answers begin with.
const ANSWER: &str = "bento-push: ";

/// How to become root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Escalation {
    /// Not at all where root logs in; else by the first of the others that the machine has.
    #[default]
    Auto,
    /// sudo
    Sudo,
    /// doas
    Doas,
    /// run0
    Run0,
}

/// The store path of the program: everywhere the same, as it is that of its contents.
pub fn helper_path() -> Result<StorePath> {
    let dir = tempfile::tempdir().context("cannot make a directory")?;
    let file = dir.path().join(NAME);
    let mut program = std::fs::File::create(&file).context("cannot write the helper")?;
    program.write_all(HELPER.as_bytes()).context("cannot write the helper")?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).context("cannot write the helper")?;
    let (hash, _) =
        nar::hash_path::<NarError>(&file, nar::keep_all, HashAlgo::Sha256).context("cannot hash the helper")?;
    let address = ContentAddress { method: ContentAddressMethod::NixArchive, hash };
    let store = StoreDir::default();
    Ok(StorePath::new(store.print(&store.make_fixed_output_path(NAME, &address)?))?)
}

/// Who is asked to run the program, and how.
#[derive(Clone, Debug)]
pub struct Root {
    helper: StorePath,
    /// `None` if root logs in.
    by: Option<Escalation>,
    password: Option<String>,
}

impl Root {
    /// Puts the program onto a machine, and finds out how it can be run there as root. `root` is whether root logs in, `tools` what
    /// there is of sudo, doas and run0.
    pub fn set_up(
        remote: &Remote,
        wanted: Escalation,
        password: Option<&str>,
        root: bool,
        tools: &[String],
        limit: Duration,
    ) -> Result<Self> {
        let helper = helper_path()?;
        let script = format!(
            "if [ -x {helper} ]; then cat > /dev/null; echo {helper}; exit; fi\n\
             dir=$(mktemp -d) && trap 'rm -rf \"$dir\"' EXIT\n\
             cat > \"$dir/{NAME}\" && chmod 755 \"$dir/{NAME}\" && nix-store --add \"$dir/{NAME}\""
        );
        // its input has to end
        let sized = format!("head -c {} | {{\n{script}\n}}", HELPER.len());
        let put = remote
            .feed(&sized, HELPER.as_bytes(), limit)
            .context("the helper can't be put into the machine's store")?;
        if put.trim() != helper.as_str() {
            bail!("the machine's store has the helper as {}, and not as {helper}", put.trim());
        }
        let by = match wanted {
            _ if root => None,
            Escalation::Auto => {
                let by = [Escalation::Sudo, Escalation::Doas, Escalation::Run0]
                    .into_iter()
                    .find(|by| tools.iter().any(|tool| tool == by.program()));
                Some(by.context(
                    "who logs in is not root, and there is none of sudo, doas and run0: log in as root, or install one",
                )?)
            }
            wanted => Some(wanted),
        };
        let direct = Self { helper, by, password: None };
        let Err(error) = direct.call(remote, &["hello"], limit) else { return Ok(direct) };
        let (Some(password), true) = (password, by.is_some()) else { return Err(error) };
        let asked = Self { password: Some(password.to_owned()), ..direct };
        asked.call(remote, &["hello"], limit)?;
        Ok(asked)
    }

    /// Whether it takes a password each time.
    pub fn needs_password(&self) -> bool {
        self.password.is_some()
    }

    /// The words that begin a command for the program, where no password is needed.
    pub fn words(&self) -> String {
        let helper = &self.helper;
        match self.by {
            None => helper.to_string(),
            Some(by) => format!("{} {} {helper}", by.program(), by.unasked()),
        }
    }

    /// Has the program do something; gives what was printed meanwhile.
    pub fn call(&self, remote: &Remote, words: &[&str], limit: Duration) -> Result<String> {
        let what = words.join(" ");
        let spoken = match (&self.password, self.by) {
            (Some(password), Some(Escalation::Sudo)) => {
                // one that is wrong is not asked for again: the input would stay open
                let script = format!("head -n 1 | sudo -S -p '' {} {what}", self.helper);
                let input = format!("{password}\n");
                remote.speak(&script, input.as_bytes(), limit)?
            }
            (Some(password), Some(by)) => {
                // these read from the terminal, and only what was typed after they asked
                let script = format!("exec {} {} {what}", by.program(), self.helper);
                let mut typist = Typist::new(password);
                let spoken = remote.speak_on_terminal(&script, &mut |said| typist.answer(said), limit)?;
                Spoken { stdout: typist.unechoed(&spoken.stdout), ..spoken }
            }
            _ => {
                let script = format!("exec {} {what}", self.words());
                remote.speak(&script, b"", limit)?
            }
        };
        let answers = |line: &&str| line.starts_with(ANSWER);
        let said = spoken.stdout;
        let Some(answer) = said.lines().rfind(answers).and_then(|line| line.strip_prefix(ANSWER)) else {
            let complaint = format!("{}\n{}", said.trim(), spoken.stderr.trim()).trim().to_owned();
            return Err(self.explain(&complaint));
        };
        let before: Vec<&str> = said.lines().filter(|line| !answers(line)).collect();
        match answer.strip_prefix("error: ") {
            Some(error) if before.is_empty() => bail!("{error}"),
            Some(error) => bail!("{error}: {}", before.join("; ")),
            None => Ok(before.join("\n")),
        }
    }

    /// Says why the program could not be run, and what helps.
    fn explain(&self, complaint: &str) -> anyhow::Error {
        let Some(by) = self.by else { return anyhow::anyhow!("the helper {} can't be run: {complaint}", self.helper) };
        let tool = by.program();
        let asked =
            ["password is required", "Authorization required", "Authentication required", "Interactive authentication"];
        if self.password.is_none() && (asked.iter().any(|words| complaint.contains(words))) {
            return anyhow::anyhow!(
                "{tool} wants a password: give it with --ask-password or --password-file, or allow the helper without one \
                 (`bento deploy --helper` shows how); it says: {complaint}"
            );
        }
        anyhow::anyhow!(
            "{tool} does not run the helper {}: {complaint} (`bento deploy --helper` shows what has to be allowed)",
            self.helper
        )
    }
}

/// Types a password where a terminal asks for it.
///
/// What is typed between the question and the moment at which the terminal stops to show it may be thrown away: polkit's agent
/// does so (`TCSAFLUSH` after the prompt), doas (`readpassphrase`) before it asks. Who has read a password ends the line.
#[derive(Debug)]
pub struct Typist<'a> {
    password: &'a str,
    /// What was said when it was typed, when that was last, and how often.
    typed: Option<(String, Instant, u32)>,
}

impl<'a> Typist<'a> {
    /// How long the password may lie there before it is typed again.
    const PATIENCE: Duration = Duration::from_secs(2);
    /// How often it is typed at most.
    const MOST: u32 = 4;

    /// Who has this password.
    pub fn new(password: &'a str) -> Self {
        Self { password, typed: None }
    }

    /// What is to be typed now, after the terminal has shown all of `said`, if anything.
    pub fn answer(&mut self, said: &str) -> Option<Vec<u8>> {
        let said = self.unechoed(&filter_escapes(said, false));
        let said = said.trim_end_matches(' ');
        let question = said.rsplit('\n').next().unwrap_or_default().to_lowercase();
        if !(question.ends_with(':') && question.contains("password")) {
            return None;
        }
        let times = match &self.typed {
            None => 0,
            // another question, as after a wrong one, has no other answer
            Some((before, ..)) if *before != said => return None,
            Some((_, last, times)) if *times == Self::MOST || last.elapsed() < Self::PATIENCE => return None,
            Some((.., times)) => *times,
        };
        self.typed = Some((said.to_owned(), Instant::now(), times + 1));
        Some(format!("{}\n", self.password).into_bytes())
    }

    /// A text without the lines that the terminal has shown while they were typed.
    pub fn unechoed(&self, said: &str) -> String {
        said.replace(&format!("{}\n", self.password), "")
    }
}

impl Escalation {
    /// The program's name.
    fn program(self) -> &'static str {
        match self {
            Self::Auto | Self::Sudo => "sudo",
            Self::Doas => "doas",
            Self::Run0 => "run0",
        }
    }

    /// The option that has it fail rather than ask.
    fn unasked(self) -> &'static str {
        match self {
            // nor rely on a password that was typed lately: it would not last
            Self::Auto | Self::Sudo => "-k -n",
            Self::Doas => "-n",
            Self::Run0 => "--no-ask-password",
        }
    }
}
