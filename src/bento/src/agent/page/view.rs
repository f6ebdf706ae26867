//! The page as HTML.

use jiff::Timestamp;
use maud::{DOCTYPE, Markup, html};

use crate::agent::standing::Standing;
use crate::report::{Outcome, Report, Stage};
use crate::status::table::span;
use crate::store_path::StorePath;

/// A page around something.
fn around(title: &str, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                link rel="stylesheet" href="/page.css";
            }
            body { main { (content) } }
        }
    }
}

/// A page that says something, and has a way back.
pub(super) fn message(text: &str) -> Markup {
    around("bento", &html! { p { (text) } p { a href="/" { "To the page of this machine" } } })
}

/// The page.
pub(super) fn page(standing: &Standing, token: &str, log: bool) -> Markup {
    let content = html! {
        h1 { (standing.host) }
        div #standing aria-live="polite" { (self::standing(standing)) }
        form method="post" action="/update" {
            input type="hidden" name="token" value=(token);
            button #update disabled[standing.busy] { "Update now" }
        }
        @if log {
            h2 { "Log" }
            pre #log tabindex="0" {}
        } @else {
            p.note { "The log is shown to those who may read this machine's journal." }
        }
        script src="/page.js" {}
    };
    around(&format!("{} – bento", standing.host), &content)
}

/// How the machine stands: the part of the page that changes by itself.
pub(super) fn standing(standing: &Standing) -> Markup {
    html! {
        p.state data-busy=(standing.busy) { (words(standing)) }
        @if standing.reboot_needed {
            p.notice #reboot { "Restart this machine: only that brings the kernel that belongs to the current system." }
        }
        @if let Some(hold) = &standing.held {
            p.notice #held {
                "This machine is kept as it is" @if let Some(reason) = &hold.reason { ": " (reason) } "."
                " " code { "bento agent release" } " lets it go."
            }
        }
        @if let Some(put_off) = standing.put_off.filter(|_| !standing.busy) {
            p.notice #put-off { "The release is tried again after " (put_off.until) "." }
        }
        dl {
            dt { "Current system" } dd #system { (system(standing.running.as_ref())) }
            dt { "Release" } dd #release { @if standing.serial == 0 { "none yet" } @else { (standing.serial) } }
            @if let Some(last) = &standing.last { dt { "Last result" } dd #last { (result(last)) } }
            @if let Some(before) = &standing.before { dt { "Before" } dd #before { (system(Some(before))) } }
            @if let Some(count) = standing.failed_units.filter(|count| *count > 0) { dt { "Failed units" } dd { (count) } }
            @if standing.undelivered > 0 { dt { "Not delivered" } dd { (standing.undelivered) " reports wait for the hub" } }
        }
    }
}

/// In one sentence.
fn words(standing: &Standing) -> &'static str {
    match (standing.busy, standing.last.as_ref().map(|last| last.outcome)) {
        (true, _) => "The agent is at work.",
        (false, None) => "No release was taken up yet.",
        (false, Some(Outcome::Success | Outcome::Autoupdate)) => "This machine runs what it should.",
        (false, Some(Outcome::Failure)) => "The last release could not be taken up.",
        (false, Some(Outcome::Rollback)) => "This machine went back to an earlier system.",
    }
}

/// A system, by its name, with the whole path at hand.
fn system(path: Option<&StorePath>) -> Markup {
    html! {
        @match path {
            Some(path) => code title=(path) { (path.base_name()) },
            None => "unknown",
        }
    }
}

/// What came of an attempt.
fn result(last: &Report) -> Markup {
    let ago = span(Timestamp::now().duration_since(last.finished).as_secs());
    html! {
        strong class=(last.outcome.word()) { (last.outcome.word()) }
        ", release " (last.serial) ", "
        time datetime=(last.finished) title=(last.finished) { (ago) " ago" }
        @if last.stage == Stage::Reboot { ", waits for a restart" }
        @if let Some(reason) = last.reason.as_ref().or(last.note.as_ref()) { p.reason { (reason) } }
    }
}
