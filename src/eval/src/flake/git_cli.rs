//! What is left to the program `git`: all that talks to other machines, so that the user's configuration, credentials and SSH
//! agent count, as with C++ Nix; and what a flake's lock file needs to be tracked.

use super::error::FlakeError;
use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// `git` in `directory`. What the environment says of another repository doesn't count.
fn git(directory: &Path) -> Command {
    let mut command = Command::new("git");
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE"] {
        command.env_remove(name);
    }
    command.arg("-C").arg(directory).stdin(Stdio::null());
    command
}

fn run(mut command: Command) -> Result<Output, String> {
    command.output().map_err(|error| format!("cannot start 'git': {error}; is it installed and in PATH?"))
}

/// What it printed, or its complaint.
fn succeed(command: Command) -> Result<Vec<u8>, String> {
    let output = run(command)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(if complaint.is_empty() { format!("'git' ended with {}", output.status) } else { complaint })
}

/// Fetches `refspec` from `url` into the bare repository `directory`.
pub(super) fn fetch(directory: &Path, url: &str, refspec: &str, shallow: bool) -> Result<(), FlakeError> {
    let mut command = git(directory);
    command.args(["--git-dir", ".", "fetch", "--quiet", "--force"]);
    if shallow {
        command.args(["--depth", "1"]);
    }
    command.args(["--", url, refspec]);
    succeed(command).map_err(|reason| FlakeError::Download { url: url.to_owned(), reason })?;
    Ok(())
}

/// The branch that is `HEAD` of the repository at `url`, in full; the commit if it is none. `None` if it doesn't say.
pub(super) fn remote_head(url: &str) -> Result<Option<String>, FlakeError> {
    let mut command = git(Path::new("/"));
    command.args(["ls-remote", "--symref", "--", url]);
    let lines = succeed(command).map_err(|reason| FlakeError::Download { url: url.to_owned(), reason })?;
    let lines = String::from_utf8_lossy(&lines).into_owned();
    Ok(lines.lines().next().and_then(|line| match line.strip_prefix("ref: ") {
        Some(target) => target.split('\t').next().map(str::to_owned),
        None => line.split_once('\t').filter(|(_, name)| *name == "HEAD").map(|(commit, _)| commit.to_owned()),
    }))
}

/// Has Git track a file that was just written, without its contents, unless it is ignored.
pub(super) fn intend_to_add(repository: &Path, file: &Path) -> Result<(), FlakeError> {
    let failed = |reason: String| {
        FlakeError::Source(format!("cannot add \"{}\" to the Git repository: {reason}", file.display()))
    };
    let mut ignored = git(repository);
    ignored.args(["check-ignore", "--quiet", "--"]).arg(file);
    if run(ignored).map_err(failed)?.status.success() {
        return Ok(());
    }
    let mut add = git(repository);
    add.args(["add", "--intent-to-add", "--"]).arg(file);
    succeed(add).map(|_| ()).map_err(failed)
}

/// Which of `paths` (those of directories may end in a slash, and have to for patterns that mean directories only) have the
/// attribute `export-ignore`: according to the files `.gitattributes` of `commit`, or of the index.
pub(super) fn export_ignored(
    repository: &Path,
    commit: Option<&str>,
    paths: &[Vec<u8>],
) -> Result<Vec<Vec<u8>>, FlakeError> {
    let failed = |reason: String| {
        FlakeError::Source(format!("cannot tell the attributes in \"{}\": {reason}", repository.display()))
    };
    let mut command = git(repository);
    command.env("GIT_ATTR_NOSYSTEM", "1").arg("check-attr");
    match commit {
        Some(commit) => command.arg(format!("--source={commit}")),
        None => command.arg("--cached"),
    };
    command.args(["--stdin", "-z", "export-ignore"].map(OsStr::new));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let attempt = || {
        let mut child = command.spawn()?;
        let stdin = child.stdin.take();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // what it doesn't read, it complains of by its status
                let _ = stdin.map(|mut stdin| stdin.write_all(&[paths.join(&b'\0'), vec![0]].concat()));
            });
            child.wait_with_output()
        })
    };
    let mut attempt = attempt;
    let output = attempt().map_err(|error: std::io::Error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    // PATH NUL ATTRIBUTE NUL VALUE NUL
    let fields: Vec<&[u8]> = output.stdout.split(|byte| *byte == 0).collect();
    Ok(fields.chunks_exact(3).filter(|field| field[2] == b"set").map(|field| field[0].to_vec()).collect())
}
