//! Forges: how GitHub, GitLab and SourceHut are asked for a commit and for its files.
//!
//! The addresses and headers are those that Nix 2.34 uses.

use super::error::FlakeError;
use super::http::RequestHeader;
use super::reference::{Input, Scheme};
use super::settings::FetchSettings;
use serde_json::Value;

/// A repository on a forge.
pub(super) struct Repository<'i> {
    scheme: Scheme,
    host: &'i str,
    owner: &'i str,
    repo: &'i str,
}

impl<'i> Repository<'i> {
    /// The repository of an input; `None` if it is not on a forge.
    ///
    /// # Errors
    /// When an attribute is malformed.
    pub(super) fn of(input: &'i Input) -> Result<Option<Repository<'i>>, FlakeError> {
        let (scheme, default_host) = match input.scheme() {
            Some(scheme @ Scheme::GitHub) => (scheme, "github.com"),
            Some(scheme @ Scheme::GitLab) => (scheme, "gitlab.com"),
            Some(scheme @ Scheme::SourceHut) => (scheme, "git.sr.ht"),
            _ => return Ok(None),
        };
        let host = input.maybe_string("host")?.unwrap_or(default_host);
        Ok(Some(Repository { scheme, host, owner: input.string("owner")?, repo: input.string("repo")? }))
    }

    /// The headers that tell the forge who asks, if a token for it is known; `warn` hears of one that makes no sense.
    pub(super) fn headers(&self, settings: &FetchSettings, warn: &dyn Fn(&str)) -> Vec<RequestHeader> {
        let Some(token) = self.token(settings) else { return Vec::new() };
        let header = match self.scheme {
            Scheme::GitLab => match token.split_once(':') {
                Some(("OAuth2", token)) => ("Authorization".to_owned(), format!("Bearer {token}")),
                Some(("PAT", token)) => ("Private-token".to_owned(), token.to_owned()),
                Some((kind, token)) => {
                    warn(&format!("Unrecognized GitLab token type {kind}"));
                    (kind.to_owned(), token.to_owned())
                }
                None => {
                    warn(&format!("the access token for '{}' has no type: 'OAuth2:TOKEN' or 'PAT:TOKEN'", self.host));
                    return Vec::new();
                }
            },
            Scheme::SourceHut => ("Authorization".to_owned(), format!("Bearer {token}")),
            _ => ("Authorization".to_owned(), format!("token {token}")),
        };
        vec![header]
    }

    /// The token whose key is the longest beginning of `HOST/OWNER/REPO` that ends where a part does.
    fn token<'s>(&self, settings: &'s FetchSettings) -> Option<&'s str> {
        let place = format!("{}/{}/{}", self.host, self.owner, self.repo);
        let fits = |key: &str| match place.strip_prefix(key) {
            Some(rest) => rest.is_empty() || rest.starts_with('/'),
            None => false,
        };
        let tokens = settings.access_tokens.iter();
        tokens.filter(|(key, _)| fits(key)).max_by_key(|(key, _)| key.len()).map(|(_, token)| token.as_str())
    }

    /// The commit that a branch, a tag or `HEAD` is; `download` gets what is at an address.
    ///
    /// # Errors
    /// When it can't be had or the forge knows no such name.
    pub(super) fn commit(
        &self,
        reference: &str,
        download: impl Fn(&str) -> Result<Vec<u8>, FlakeError>,
    ) -> Result<String, FlakeError> {
        let Repository { host, owner, repo, .. } = self;
        if self.scheme == Scheme::SourceHut {
            return self.sourcehut_commit(reference, download);
        }
        let url = match self.scheme {
            Scheme::GitHub if *host == "github.com" => {
                format!("https://api.{host}/repos/{owner}/{repo}/commits/{reference}")
            }
            Scheme::GitHub => format!("https://{host}/api/v3/repos/{owner}/{repo}/commits/{reference}"),
            _ => format!("https://{host}/api/v4/projects/{owner}%2F{repo}/repository/commits?ref_name={reference}"),
        };
        let unexpected = || FlakeError::Source(format!("the answer of '{url}' names no commit"));
        let json: Value = serde_json::from_slice(&download(&url)?).map_err(|_| unexpected())?;
        let commit = match (self.scheme, &json) {
            (Scheme::GitHub, json) => json.get("sha"),
            (_, Value::Array(commits)) if commits.is_empty() => {
                return Err(FlakeError::Source(
                    "No commits returned by GitLab API -- does the git ref really exist?".to_owned(),
                ));
            }
            (_, json) => json.get(0).and_then(|commit| commit.get("id")),
        };
        commit.and_then(Value::as_str).map(str::to_owned).ok_or_else(unexpected)
    }

    /// SourceHut is asked as Git's plain HTTP transport would: `HEAD` and `info/refs` are files.
    fn sourcehut_commit(
        &self,
        reference: &str,
        download: impl Fn(&str) -> Result<Vec<u8>, FlakeError>,
    ) -> Result<String, FlakeError> {
        let Repository { host, owner, repo, .. } = self;
        let base = format!("https://{host}/{owner}/{repo}");
        let lines = |url: String| Ok::<_, FlakeError>(String::from_utf8_lossy(&download(&url)?).into_owned());
        let wanted = if reference == "HEAD" {
            let head = lines(format!("{base}/HEAD"))?;
            let target = head.lines().next().and_then(|line| line.strip_prefix("ref: "));
            let unresolved = || FlakeError::Source(format!("in '{base}', couldn't resolve HEAD ref '{reference}'"));
            vec![target.ok_or_else(unresolved)?.trim().to_owned()]
        } else {
            vec![format!("refs/heads/{reference}"), format!("refs/tags/{reference}")]
        };
        let refs = lines(format!("{base}/info/refs"))?;
        refs.lines()
            .filter_map(|line| line.split_once('\t'))
            .find(|(_, name)| wanted.iter().any(|wanted| wanted == name))
            .map(|(commit, _)| commit.to_owned())
            .ok_or_else(|| FlakeError::Source(format!("in '{base}', couldn't find ref '{reference}'")))
    }

    /// The address of an archive with the files of a commit; `with_token` if the request says who asks.
    pub(super) fn archive(&self, rev: &str, with_token: bool) -> String {
        let Repository { host, owner, repo, .. } = self;
        match self.scheme {
            Scheme::GitHub if *host != "github.com" => {
                format!("https://{host}/api/v3/repos/{owner}/{repo}/tarball/{rev}")
            }
            // the public address has no limit on requests
            Scheme::GitHub if !with_token => format!("https://{host}/{owner}/{repo}/archive/{rev}.tar.gz"),
            Scheme::GitHub => format!("https://api.{host}/repos/{owner}/{repo}/tarball/{rev}"),
            Scheme::SourceHut => format!("https://{host}/{owner}/{repo}/archive/{rev}.tar.gz"),
            _ => format!("https://{host}/api/v4/projects/{owner}%2F{repo}/repository/archive.tar.gz?sha={rev}"),
        }
    }
}
