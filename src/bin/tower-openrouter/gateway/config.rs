//! Where a setting comes from: a flag, else the environment, else the configuration file, else its default.

use std::{ffi::OsString, fs, mem, path::Path};

use tower_openrouter::ApiKey;

mod arguments;
mod keys;
mod routes;
mod settings;
mod trouble;

pub(crate) use arguments::Arguments;
pub(crate) use settings::{Settings, Token};
pub(crate) use trouble::Trouble;

use trouble::Source;

/// Variables as [`std::env::vars_os`] gives them.
pub(crate) type Variables = Vec<(OsString, OsString)>;

/// Everything that was set, checked as far as it can be without using it.
#[derive(Debug)]
pub(crate) struct Configuration {
    /// All but the keys.
    pub(crate) settings: Settings,
    pub(crate) keys: Vec<ApiKey>,
    file: Option<Source>,
}

impl Arguments {
    /// Reads the file and the environment anew, and puts them together with the flags. What is wrong is told with the file
    /// and the line, and with what to do.
    pub(crate) fn load(&self, variables: &Variables) -> Result<Configuration, String> {
        let (file, folder) = match &self.config {
            None => (None, Path::new("")),
            Some(path) => {
                let name = path.display();
                let text = fs::read_to_string(path)
                    .map_err(|error| format!("--config {name}: {error}; give the path of a TOML file"))?;
                (Some(Source::new(name.to_string(), &text)), path.parent().unwrap_or("".as_ref()))
            }
        };
        let settle = || {
            let mut settings = file.as_ref().map_or_else(|| Ok(Settings::default()), Source::parse)?;
            self.apply(&mut settings)?;
            settings.check()?;
            let keys = keys::load(&mem::take(&mut settings.keys), folder, variables)?;
            routes::check(&settings.routes, &keys)?;
            Ok((settings, keys))
        };
        match settle() {
            Ok((settings, keys)) => Ok(Configuration { settings, keys, file }),
            Err(trouble) => Err(tell(file.as_ref(), &trouble)),
        }
    }
}

impl Configuration {
    /// What is wrong with it, and where.
    pub(crate) fn tell(&self, trouble: &Trouble) -> String {
        tell(self.file.as_ref(), trouble)
    }

    /// The name of the configuration file.
    pub(crate) fn file(&self) -> Option<&str> {
        self.file.as_ref().map(|file| &*file.name)
    }
}

fn tell(file: Option<&Source>, trouble: &Trouble) -> String {
    file.map_or_else(|| trouble.to_string(), |file| file.tell(trouble))
}
