//! `create`: declares a key, waits until every verifier knows it, and shows it once.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use jiff::Zoned;
use jiff::civil::Date;
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use k8s_openapi::api::core::v1::Secret;
use keywright_core::api::ApiKey;
use keywright_core::declaration::{self, DEFAULT_SECRET_KEY, Delivery, is_dns_subdomain};
use keywright_core::key::{Key, Presented};
use keywright_core::{date_time, duration};
use rand::rngs::SysRng;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::follow::{Outcome, follow};
use crate::args::{Create, DryRun};
use crate::change::{self, NotWritten};
use crate::cluster::ClusterOptions;
use crate::failure::Failure;
use crate::interrupt::unless_pressed;
use crate::output::{Format, document_of};
use crate::private_file;
use crate::session::Session;
use crate::terminal::Terminal;
use crate::view::wait::{Change, Wanted, in_force};

/// Where a key is shown.
enum Destination {
    /// On standard output.
    Output,
    /// In a new file.
    File(KeyFile),
    /// Nowhere: it is in its Secret.
    Nowhere,
}

/// A new file that only the user can read, gone again unless a key is in it that may be let in.
struct KeyFile {
    file: File,
    path: PathBuf,
    is_kept: bool,
}

/// Why there is no answer that says that the ApiKey was created.
enum NotCreated {
    /// The API server has refused it.
    Refused(Failure),
    /// Nobody knows.
    Unknown(Failure),
}

/// Creates a key.
pub async fn run(options: &ClusterOptions, asked: &Create) -> Result<(), Failure> {
    if asked.dry_run == Some(DryRun::Client) {
        return print_manifest(options, asked).await;
    }
    let session = Session::start(options).await?;
    let mut spec = spec(asked, &session.cluster.now());
    if asked.dry_run == Some(DryRun::Server) {
        check(&asked.name, &spec, &session.cluster.now())?;
        return try_out(&session, asked, &spec).await;
    }
    let made = asked.local.then(|| Key::mint(&mut SysRng)).transpose();
    let made = made.map_err(|error| Failure::usage(format!("The system gives no random numbers: {error}.")))?;
    if let Some(key) = &made {
        spec.insert("keyHash".to_owned(), json!(key.digest().to_string()));
    }
    let delivery = check(&asked.name, &spec, &session.cluster.now())?;
    let destination = destination(session.terminal, asked)?;
    match made {
        Some(key) => create_made(&session, asked, &spec, destination, key).await,
        None => create_delivered(&session, asked, &spec, destination, &delivery).await,
    }
}

/// A key that was made here is in nobody else's hands: it is in its file before anybody can let it in.
async fn create_made(
    session: &Session,
    asked: &Create,
    spec: &Map<String, Value>,
    mut destination: Destination,
    key: Key,
) -> Result<(), Failure> {
    if let Destination::File(file) = &mut destination {
        file.write(key.reveal()).map_err(|error| Failure::usage(error).adding("Nothing was created."))?;
    }
    let created = match submit(session, asked, spec).await {
        Ok(created) => created,
        Err(NotCreated::Refused(failure)) => {
            destination.discard();
            return Err(failure);
        }
        Err(NotCreated::Unknown(failure)) => {
            return Err(failure.adding(match &destination {
                Destination::File(file) => format!("If it was, its key is in {}.", file.path.display()),
                Destination::Output | Destination::Nowhere => "If it was, revoke it: nobody has its key.".to_owned(),
            }));
        }
    };
    let outcome = wait(session, asked, &created).await;
    hand_out_made(session, asked, &destination, &key, outcome)
}

async fn create_delivered(
    session: &Session,
    asked: &Create,
    spec: &Map<String, Value>,
    mut destination: Destination,
    delivery: &Delivery,
) -> Result<(), Failure> {
    if let (Delivery::Secret { name, .. }, false) = (delivery, asked.no_print) {
        let may = unless_pressed(require_secrets(session, name)).await;
        may.unwrap_or_else(|| Err(Failure::interrupted("Nothing was created.")))?;
    }
    let created = submit(session, asked, spec).await.map_err(|error| match error {
        NotCreated::Refused(failure) => failure,
        NotCreated::Unknown(failure) => failure.adding("Look at it before you try again."),
    })?;
    let outcome = wait(session, asked, &created).await;
    hand_out_delivered(session, asked, &mut destination, delivery, outcome).await
}

/// The spec that the flags mean. Anything wrong in it is left for [`declaration::read`] to find.
fn spec(asked: &Create, now: &Zoned) -> Map<String, Value> {
    let mut spec = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            spec.insert(name.to_owned(), value);
        }
    };
    put("displayName", asked.display_name.as_ref().map(|text| json!(text)));
    put("description", asked.description.as_ref().map(|text| json!(text)));
    put("owner", asked.owner.as_ref().map(|text| json!(text)));
    if let Some((field, value)) = asked.expires.as_deref().map(|text| end(text, now)) {
        put(field, Some(json!(value)));
    }
    put("allowedIPs", (!asked.allow_ip.is_empty()).then(|| json!(asked.allow_ip)));
    put("scopes", (!asked.scope.is_empty()).then(|| json!(asked.scope)));
    put("rotation", object([("every", &asked.rotate_every), ("overlap", &asked.overlap)]));
    put("secret", object([("name", &asked.secret_name), ("key", &asked.secret_key)]));
    spec
}

/// An object of the fields that are given, if any is.
fn object(fields: [(&str, &Option<String>); 2]) -> Option<Value> {
    let given: Map<_, _> =
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?)))).collect();
    (!given.is_empty()).then_some(Value::Object(given))
}

/// The field that `--expires` sets, and its value. A day ends a key at its start, where the user is.
fn end(text: &str, now: &Zoned) -> (&'static str, String) {
    if text.eq_ignore_ascii_case("never") {
        return ("expiresIn", "Never".to_owned());
    }
    if duration::parse(text).is_err() {
        let day = text.parse::<Date>().ok().filter(|_| text.len() == "2027-01-31".len());
        if let Some(start) = day.and_then(|day| day.to_zoned(now.time_zone().clone()).ok()) {
            return ("expiresAt", start.timestamp().to_string());
        }
        if date_time::parse(text).is_some() {
            return ("expiresAt", text.to_owned());
        }
    }
    ("expiresIn", text.to_owned())
}

/// What the spec means.
fn check(name: &str, spec: &Map<String, Value>, now: &Zoned) -> Result<Delivery, Failure> {
    if !is_dns_subdomain(name) {
        let rule = "NAME is no DNS name: write a to z, 0 to 9, hyphens and dots, with a letter or digit at both ends.";
        return Err(Failure::usage(format!("{rule}\nNothing was created.")));
    }
    let read = declaration::read(&Value::Object(spec.clone()), name, now.timestamp());
    let declaration = read.map_err(|problems| {
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        Failure::usage(format!("{}\nNothing was created.", problems.join("\n")))
    })?;
    match declaration.expires_at {
        Some(end) if end <= now.timestamp() => {
            let now = now.timestamp().strftime("%Y-%m-%dT%H:%M:%SZ");
            Err(Failure::usage(format!("--expires: {end} has passed, it is {now}.\nNothing was created.")))
        }
        _ => Ok(declaration.delivery),
    }
}

fn manifest(name: &str, namespace: Option<&str>, spec: &Map<String, Value>) -> Value {
    let mut metadata = Map::from_iter([("name".to_owned(), json!(name))]);
    if let Some(namespace) = namespace {
        metadata.insert("namespace".to_owned(), json!(namespace));
    }
    json!({"apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "metadata": metadata, "spec": spec})
}

/// What would be sent. Needs no cluster, and no kubeconfig.
async fn print_manifest(options: &ClusterOptions, asked: &Create) -> Result<(), Failure> {
    refuse_local(asked)?;
    let terminal = Terminal::detect();
    let session = Session::start(options).await.ok();
    let now = session.as_ref().map_or_else(Zoned::now, |session| session.cluster.now());
    let spec = spec(asked, &now);
    check(&asked.name, &spec, &now)?;
    let namespace = session.map(|session| session.cluster.namespace).or_else(|| options.namespace.clone());
    if namespace.as_deref().is_some_and(|namespace| !is_dns_subdomain(namespace)) {
        return Err(Failure::usage("The namespace is no DNS name: write a to z, 0 to 9 and hyphens."));
    }
    let manifest = manifest(&asked.name, namespace.as_deref(), &spec);
    print_object(terminal, asked.output.unwrap_or(Format::Yaml), &manifest)
}

/// What the API server would store.
async fn try_out(session: &Session, asked: &Create, spec: &Map<String, Value>) -> Result<(), Failure> {
    refuse_local(asked)?;
    let namespace = &session.cluster.namespace;
    let manifest = manifest(&asked.name, Some(namespace), spec);
    let tried = session.patiently(session.cluster.create::<ApiKey>(namespace, &manifest, true)).await;
    let tried = tried.map_err(|error| session.attempt("create", &asked.name).failed(&error))?;
    session.terminal.warn(&tried.warnings);
    match asked.output {
        Some(format) => print_object(session.terminal, format, &document_of(&tried.value)),
        None => {
            session.terminal.say(&format!("{}: would be created.", session.full_name(&asked.name)));
            Ok(())
        }
    }
}

fn refuse_local(asked: &Create) -> Result<(), Failure> {
    if asked.local { Err(Failure::usage("A dry run makes no key: leave --local out.")) } else { Ok(()) }
}

fn print_object(terminal: Terminal, format: Format, object: &Value) -> Result<(), Failure> {
    let format = if matches!(format, Format::Table | Format::Wide) { Format::Yaml } else { format };
    terminal.print(&format.document(object)?.unwrap_or_default())
}

/// Where the key goes: found out before anything is made, as it is shown once.
fn destination(terminal: Terminal, asked: &Create) -> Result<Destination, Failure> {
    if asked.no_print {
        return Ok(Destination::Nowhere);
    }
    if let Some(path) = &asked.output_file {
        return KeyFile::create(path).map(Destination::File);
    }
    if terminal.output_is_lost {
        return Err(Failure::usage(
            "Standard output is closed, or the null device, and a key is shown once. Add --output-file FILE, or \
             --no-print. Nothing was created.",
        ));
    }
    if terminal.output_is_terminal || asked.print {
        return Ok(Destination::Output);
    }
    Err(Failure::usage(
        "Standard output is no terminal, and a key is shown once. Add --output-file FILE, --print, or --no-print. \
         Nothing was created.",
    ))
}

/// Asks first: a key that cannot be shown is not worth making.
async fn require_secrets(session: &Session, secret: &str) -> Result<(), Failure> {
    let namespace = &session.cluster.namespace;
    let action = ResourceAttributes {
        namespace: Some(namespace.clone()),
        verb: Some("get".to_owned()),
        resource: Some("secrets".to_owned()),
        name: Some(secret.to_owned()),
        ..ResourceAttributes::default()
    };
    match session.patiently(session.cluster.may(action)).await {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err(Failure::usage(format!("You may not read Secrets in {namespace}: add --local or --no-print.")))
        }
        Err(error) => Err(session.cluster.attempt("get", "secrets", namespace, secret).failed(&error)),
    }
}

async fn submit(session: &Session, asked: &Create, spec: &Map<String, Value>) -> Result<ApiKey, NotCreated> {
    let namespace = &session.cluster.namespace;
    let manifest = manifest(&asked.name, Some(namespace), spec);
    let sent = session.patiently(change::create(&session.cluster, namespace, &manifest));
    let unknown = format!("Whether {} was created is not known.", session.full_name(&asked.name));
    match unless_pressed(sent).await {
        None => Err(NotCreated::Unknown(Failure::interrupted(unknown))),
        Some(Ok(created)) => {
            session.terminal.warn(&created.warnings);
            Ok(created.value)
        }
        Some(Err(error)) => {
            let failure = session.not_written("create", &asked.name, &error, &unknown);
            Err(match error {
                NotWritten::Unknown(_) => NotCreated::Unknown(failure),
                NotWritten::Refused(_) | NotWritten::Replaced => NotCreated::Refused(failure),
            })
        }
    }
}

async fn wait(session: &Session, asked: &Create, created: &ApiKey) -> Outcome {
    let wanted = Wanted::of(created, Change::Created);
    follow(session.waits(), session.attempt("get", &asked.name), asked.timeout, async |waited| {
        let key = session.cluster.find::<ApiKey>(&session.cluster.namespace, &asked.name).await?;
        Ok(in_force(key.as_ref(), &wanted, waited, &session.cluster.now()))
    })
    .await
}

/// A key that was made here is shown whatever has come of it: nobody else has it.
fn hand_out_made(
    session: &Session,
    asked: &Create,
    destination: &Destination,
    key: &Key,
    outcome: Outcome,
) -> Result<(), Failure> {
    let name = session.full_name(&asked.name);
    let (said, failure) = match outcome {
        Outcome::Done(done) => (format!("{name}: {}", uncapital(&done)), None),
        Outcome::Failed(why) => (String::new(), Some(Failure::failed(format!("{name}: {why}")))),
        Outcome::Late(still) => (String::new(), Some(Failure::late(format!("{name}: not known everywhere. {still}")))),
        Outcome::Interrupted => (
            String::new(),
            Some(Failure::interrupted(format!("{name} is created, and may not be known everywhere yet."))),
        ),
    };
    if failure.is_none() {
        session.terminal.say(&said);
    }
    match destination {
        Destination::File(file) => session.terminal.say(&file.told()),
        Destination::Output | Destination::Nowhere => {
            let lost = format!("The key of {name} is lost, and may be let in: revoke it.");
            print(session.terminal, key.reveal()).map_err(|failure| failure.adding(lost))?;
        }
    }
    failure.map_or(Ok(()), Err)
}

/// A key that is in its Secret is shown once it works.
async fn hand_out_delivered(
    session: &Session,
    asked: &Create,
    destination: &mut Destination,
    delivery: &Delivery,
    outcome: Outcome,
) -> Result<(), Failure> {
    let name = session.full_name(&asked.name);
    let (secret, entry) = match delivery {
        Delivery::Secret { name, key, .. } | Delivery::Source { name, key } => (&**name, &**key),
        Delivery::Submitted(_) => (&*asked.name, DEFAULT_SECRET_KEY),
    };
    let there = format!("The key will be in Secret {secret}, entry {entry}.");
    match outcome {
        Outcome::Done(done) => session.terminal.say(&format!("{name}: {}", uncapital(&done))),
        Outcome::Failed(why) => return Err(Failure::failed(format!("{name}: {why}"))),
        Outcome::Late(still) => return Err(Failure::late(format!("{name}: created. {still} {there}"))),
        Outcome::Interrupted => return Err(Failure::interrupted(format!("{name}: created. {there}"))),
    }
    let here = format!("The key is in Secret {secret}, entry {entry}.");
    if let Destination::Nowhere = destination {
        session.terminal.say(&here);
        return Ok(());
    }
    let shown = match unless_pressed(read_key(session, secret, entry)).await {
        Some(key) => key.and_then(|key| show(session.terminal, destination, &key)),
        None => Err(Failure::interrupted(format!("{name}: created, and not shown."))),
    };
    shown.map_err(|failure| failure.adding(here))
}

async fn read_key(session: &Session, secret: &str, entry: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let namespace = &session.cluster.namespace;
    let read = session.patiently(session.cluster.get::<Secret>(namespace, secret)).await;
    let read = read.map_err(|error| session.cluster.attempt("get", "secrets", namespace, secret).failed(&error))?;
    let value = read.data.and_then(|mut data| data.remove(entry)).map(|value| Zeroizing::new(value.0));
    let key = value.filter(|value| Presented::parse(value).is_ok_and(|key| !key.is_foreign()));
    key.ok_or_else(|| Failure::failed(format!("Secret {secret} holds no key in entry {entry}.")))
}

fn show(terminal: Terminal, destination: &mut Destination, key: &[u8]) -> Result<(), Failure> {
    let key = str::from_utf8(key).unwrap_or_default();
    match destination {
        Destination::Nowhere => Ok(()),
        Destination::Output => print(terminal, key),
        Destination::File(file) => {
            file.write(key).map_err(Failure::failed)?;
            terminal.say(&file.told());
            Ok(())
        }
    }
}

fn print(terminal: Terminal, key: &str) -> Result<(), Failure> {
    terminal.say("Key, shown once:");
    terminal.print_key(key)
}

fn uncapital(sentence: &str) -> String {
    let mut characters = sentence.chars();
    let first = characters.next().map(|first| first.to_lowercase().to_string()).unwrap_or_default();
    first + characters.as_str()
}

impl KeyFile {
    fn create(path: &Path) -> Result<Self, Failure> {
        let file = private_file::create(path).map_err(|error| {
            let why = match error.kind() {
                std::io::ErrorKind::AlreadyExists => "it exists, and is not written over".to_owned(),
                _ => error.to_string(),
            };
            Failure::usage(format!("--output-file {}: {why}. Nothing was created.", path.display()))
        })?;
        Ok(Self { file, path: path.to_owned(), is_kept: false })
    }

    /// Writes the key, and has it reach the disk; else why not.
    fn write(&mut self, key: &str) -> Result<(), String> {
        let written = self.file.write_all(key.as_bytes()).and_then(|()| self.file.sync_all());
        written.map_err(|error| format!("{} cannot be written: {error}.", self.path.display()))?;
        self.is_kept = true;
        Ok(())
    }

    fn told(&self) -> String {
        format!("The key is in {}.", self.path.display())
    }
}

impl Destination {
    /// Forgets a key that was never let in.
    fn discard(&mut self) {
        if let Self::File(file) = self {
            file.is_kept = false;
        }
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        if !self.is_kept {
            // Without a key that is let in, it is of no use to anybody.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::fixtures::now;

    #[test]
    fn an_end_is_a_duration_a_day_a_time_or_never() {
        for (text, field, value) in [
            ("90d", "expiresIn", "90d"),
            ("never", "expiresIn", "Never"),
            ("2027-01-31", "expiresAt", "2027-01-30T23:00:00Z"),
            ("2027-01-31T12:00:00+01:00", "expiresAt", "2027-01-31T12:00:00+01:00"),
            ("soon", "expiresIn", "soon"),
        ] {
            assert_eq!(end(text, &now()), (field, value.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_manifest_holds_what_was_asked_for_and_nothing_else() {
        let asked = Create {
            name: "ci".to_owned(),
            expires: Some("90d".to_owned()),
            allow_ip: vec!["10.0.0.0/8".to_owned()],
            rotate_every: Some("30d".to_owned()),
            secret_key: Some("TOKEN".to_owned()),
            ..Create::default()
        };
        let spec = spec(&asked, &now());
        let expected = json!({
            "expiresIn": "90d", "allowedIPs": ["10.0.0.0/8"], "rotation": {"every": "30d"}, "secret": {"key": "TOKEN"},
        });
        assert_eq!(Value::Object(spec.clone()), expected);
        let object = manifest("ci", Some("team-a"), &spec);
        assert_eq!(object["metadata"], json!({"name": "ci", "namespace": "team-a"}));
        assert_eq!(manifest("ci", None, &spec)["metadata"], json!({"name": "ci"}));
    }

    #[test]
    fn a_mistake_is_told_with_what_was_meant_before_anything_is_sent() {
        let asked = Create {
            name: "ci".to_owned(),
            allow_ip: vec!["10.0.0.1/8".to_owned()],
            expires: Some("3 months".to_owned()),
            ..Create::default()
        };
        let refused = check("ci", &spec(&asked, &now()), &now()).unwrap_err();
        assert_eq!(refused.code().number(), 2);
        let said = refused.to_string();
        assert!(said.contains("did you mean \"10.0.0.0/8\"?") && said.contains("did you mean \"90d\"?"), "{said}");
    }

    #[test]
    fn what_is_no_name_is_refused_before_anything_is_sent() {
        for (name, is_good) in
            [("ci", true), ("ci-2.x", true), ("", false), ("Ci", false), ("x/../y", false), ("-", false)]
        {
            assert_eq!(check(name, &Map::new(), &now()).is_ok(), is_good, "{name}");
        }
    }

    #[test]
    fn an_end_that_has_passed_is_refused_before_anything_is_sent() {
        for (end, is_refused) in [
            ("2020-01-01", true),
            ("2026-11-29", true),
            ("2026-11-29T13:05:00Z", true),
            ("2026-11-29T13:05:01Z", false),
            ("2026-11-30", false),
            ("1d", false),
            ("Never", false),
        ] {
            let asked = Create { name: "ci".to_owned(), expires: Some(end.to_owned()), ..Create::default() };
            let refused = check("ci", &spec(&asked, &now()), &now()).err();
            assert_eq!(refused.as_ref().map(|failure| failure.code().number()), is_refused.then_some(2), "{end}");
            let said = refused.map(|failure| failure.to_string()).unwrap_or_default();
            assert_eq!(said.contains("has passed, it is 2026-11-29T13:05:00Z."), is_refused, "{end}: {said}");
        }
    }

    #[test]
    fn a_key_is_never_written_over_a_file_and_an_unused_file_goes() {
        let folder = std::env::temp_dir().join(format!("keywright-plugin-{:08x}", rand::random::<u32>()));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("ci.key");
        drop(KeyFile::create(&path).unwrap());
        assert!(!path.exists());
        KeyFile::create(&path).unwrap().write("key").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "key");
        assert_eq!(KeyFile::create(&path).err().unwrap().code().number(), 2);
        assert!(path.exists(), "and somebody else's file stays");
        let mut refused = Destination::File(KeyFile::create(&folder.join("refused.key")).unwrap());
        if let Destination::File(file) = &mut refused {
            file.write("key").unwrap();
        }
        refused.discard();
        drop(refused);
        assert!(!folder.join("refused.key").exists(), "a key that was never let in goes");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
