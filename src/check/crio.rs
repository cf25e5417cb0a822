//! CRI-O, which reads hooks.d where its configuration says.

use std::path::{Path, PathBuf};

use crate::check::registration::{Asked, Found};
use crate::check::{Check, Unread, hooks_d, list, read_toml, shown, some};

/// What CRI-O has of ours.
#[derive(Debug)]
pub(super) struct Crio {
    dirs: Vec<PathBuf>,
    pub(super) found: Found,
    /// What of its configuration was not understood.
    unread: Vec<Unread>,
}

/// Looks where CRI-O looks; `None` where it is not configured at all.
pub(super) fn survey(dir: &Path, asked: &Asked) -> Option<Crio> {
    dir.exists().then_some(())?;
    let (mut dirs, mut unread) = (vec![PathBuf::from("/usr/share/containers/oci/hooks.d")], Vec::new());
    let drop_ins = list(&dir.join("crio.conf.d"), "").unwrap_or_else(|why| {
        unread.push(why);
        Vec::new()
    });
    // Each overrides those before it.
    for file in [dir.join("crio.conf")].iter().chain(drop_ins.iter().filter(|path| !path.is_dir())) {
        match read_toml(file) {
            Ok(config) => {
                if let Some(named) = hooks_dir(&config) {
                    dirs = named;
                }
            }
            Err(why) if why.is_absent() => {}
            Err(why) => unread.push(why),
        }
    }
    let found = hooks_d::survey(&dirs, asked);
    Some(Crio { dirs, found, unread })
}

fn hooks_dir(config: &toml::Table) -> Option<Vec<PathBuf>> {
    let named = config.get("crio")?.get("runtime")?.get("hooks_dir")?.as_array()?;
    Some(named.iter().filter_map(|dir| dir.as_str().map(PathBuf::from)).collect())
}

/// Whether CRI-O runs the hook.
pub(super) fn check(crio: Option<&Crio>, dir: &Path) -> Check {
    const ID: &str = "registration.crio";
    let Some(crio) = crio else {
        return Check::skipped(ID, format!("no {}: CRI-O is not configured here", shown(dir)), "");
    };
    if let Some(unread) = crio.unread.first() {
        let make = if unread.is_forbidden() { Check::skipped } else { Check::warning };
        return make(ID, unread.why.clone(), "put that file right, or run it as root");
    }
    if crio.found.is_any() {
        return crio.found.check(ID);
    }
    if let Some(unread) = crio.found.unread.first() {
        return Check::skipped(ID, unread.why.clone(), "run it as root, or put that right");
    }
    let detail = format!("its hooks_dir is {}, and no file there names this hook", some(&crio.dirs));
    Check::warning(ID, detail, "put the directory with the hook's files into hooks_dir of [crio.runtime]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;
    use crate::check::hooks_d::tests::{asked, executable, install};

    #[test]
    fn the_last_file_that_names_hooks_dir_says_where_the_hook_must_be() {
        let dir = tempfile::tempdir().unwrap();
        let (etc, hooks) = (dir.path().join("crio"), dir.path().join("hooks.d"));
        install(&hooks, &executable(dir.path()));
        let look = || check(survey(&etc, &asked()).as_ref(), &etc);
        assert_eq!(look().state, State::Skipped);

        std::fs::create_dir_all(etc.join("crio.conf.d")).unwrap();
        let write = |name: &str, hooks: &Path| {
            std::fs::write(etc.join(name), format!("[crio.runtime]\nhooks_dir = [{hooks:?}]\nother = 1\n")).unwrap();
        };
        write("crio.conf", &dir.path().join("elsewhere"));
        let elsewhere = look();
        assert!(elsewhere.state == State::Warning && elsewhere.detail.contains("elsewhere"), "{elsewhere:?}");
        write("crio.conf.d/10-hooks", &hooks);
        assert_eq!(look().state, State::Ok);
        std::fs::write(etc.join("crio.conf.d/20-other.conf"), "[crio.image]\n").unwrap();
        assert_eq!(look().state, State::Ok);
        std::fs::write(etc.join("crio.conf.d/20-other.conf"), "[crio.image\n").unwrap();
        let torn = look();
        assert!(torn.state == State::Warning && torn.detail.contains("20-other.conf: line 1"), "{torn:?}");
    }

    #[test]
    fn what_is_wrong_with_the_hook_there_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (etc, hooks) = (dir.path().join("crio"), dir.path().join("hooks.d"));
        std::fs::create_dir(&etc).unwrap();
        std::fs::write(etc.join("crio.conf"), format!("[crio.runtime]\nhooks_dir = [{hooks:?}]\n")).unwrap();
        install(&hooks, "/none/kata-cgroup-hook");
        assert_eq!(check(survey(&etc, &asked()).as_ref(), &etc).state, State::Failure);
    }
}
