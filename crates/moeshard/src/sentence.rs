//! Errors for people: one sentence that says what failed, and why.

/// The error with its causes, each said once: some name their cause themselves, as a library's errors
/// have to that are shown alone.
#[must_use]
pub fn sentence(error: &anyhow::Error) -> String {
    let mut sentence = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !sentence.ends_with(&cause) {
            sentence = format!("{sentence}: {cause}");
        }
    }
    sentence
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use anyhow::Context;
    use moeshard_decentralized::topology::file;

    use super::*;

    #[test]
    fn causes_are_said_once() {
        let error = anyhow::anyhow!("no room").context("cannot write a.json");
        assert_eq!(sentence(&error), "cannot write a.json: no room");
        let read = file::read(Path::new("/nowhere/a.json"));
        let error = read.context("no topology").expect_err("no such file");
        assert_eq!(
            sentence(&error),
            "no topology: /nowhere/a.json: No such file or directory (os error 2)"
        );
    }
}
