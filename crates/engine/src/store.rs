//! The journal: what every operation of this controller intended and did, in SQLite.
//!
//! `synchronous=FULL`: when a call here returns, its record survives a power cut. An intent is always written before
//! the act.

mod record;
#[cfg(test)]
pub(crate) mod tests;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use kvm_clone_core::journal::{Mark, Status, Step, Trail};
use kvm_clone_core::{Code, Error, Result};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Executor, QueryBuilder, Row, Sqlite};
use uuid::Uuid;

use crate::operation::Place;
use crate::outcome::OperationType;
pub(crate) use record::{Record, Which};

/// The schema; `user_version` says which one a file has.
const SCHEMA_VERSION: i64 = 2;
const SCHEMA: &str = "
    CREATE TABLE operation (
        id TEXT PRIMARY KEY,
        type TEXT NOT NULL,
        status TEXT NOT NULL,
        source_host TEXT NOT NULL,
        dest_host TEXT NOT NULL,
        vm_name TEXT NOT NULL,
        new_vm_name TEXT NOT NULL,
        created TEXT NOT NULL,
        ended TEXT,
        plan TEXT NOT NULL,
        outcome TEXT,
        resume TEXT
    ) STRICT;
    CREATE TABLE step (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        operation TEXT NOT NULL REFERENCES operation (id),
        step TEXT NOT NULL,
        mark TEXT NOT NULL,
        time TEXT NOT NULL,
        detail TEXT
    ) STRICT;
    CREATE INDEX step_operation ON step (operation);
    PRAGMA user_version = 2;
";
/// From the first schema to the second.
const TO_SECOND: &str = "
    ALTER TABLE operation ADD COLUMN resume TEXT;
    PRAGMA user_version = 2;
";

/// How long another controller may hold the store.
const BUSY: Duration = Duration::from_secs(30);
/// The pause between two tries to open a store that another controller is making.
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// The primary result code `SQLITE_BUSY` (<https://www.sqlite.org/rescode.html#busy>).
const SQLITE_BUSY: &str = "5";

/// So many operations are remembered once they have ended: a sync of ten machines each hour makes as many in six weeks.
const REMEMBERED: i64 = 10_000;

/// What is written down as the outcome of an operation that `recover` ended.
pub(crate) const RECOVERED: &str = r#"{"recovered":true}"#;

/// A new operation as it is written down.
#[derive(Debug, Clone)]
pub(crate) struct NewOperation {
    pub(crate) id: Uuid,
    pub(crate) kind: OperationType,
    pub(crate) source_host: String,
    pub(crate) dest_host: String,
    pub(crate) vm_name: String,
    pub(crate) new_vm_name: String,
    /// The plan as JSON.
    pub(crate) plan: String,
    /// What going on with it needs, as JSON.
    pub(crate) resume: String,
}

/// An operation that is to be gone on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) status: Status,
    /// What going on with it needs, as JSON; none where an older program began it.
    pub(crate) resume: Option<String>,
}

/// What the target tells of the machine of an operation whose records leave open whether it was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// Nothing was asked, or there is no such machine.
    Nothing,
    /// It stands as the operation defined it.
    Stands,
    /// It is another one than the operation defined: the one before, or a later one.
    Another,
}

/// Why an operation is undone.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Undone<'a> {
    /// Its controller was gone: `recover` did it.
    Recovered,
    /// Its own controller gave it up, for this.
    GivenUp(&'a Error),
}

/// The store of one controller.
#[derive(Clone)]
pub(crate) struct Store {
    pool: SqlitePool,
    path: PathBuf,
}

/// Opens the file, and waits for a controller that is making it: `SQLite` does not wait by itself where a new file
/// changes over to write-ahead logging.
async fn connect(options: SqliteConnectOptions) -> sqlx::Result<SqlitePool> {
    let until = tokio::time::Instant::now() + BUSY;
    loop {
        match SqlitePoolOptions::new().max_connections(2).connect_with(options.clone()).await {
            Err(sqlx::Error::Database(error))
                if error.code().as_deref() == Some(SQLITE_BUSY) && tokio::time::Instant::now() < until =>
            {
                tokio::time::sleep(TRY_AGAIN).await;
            }
            opened => return opened,
        }
    }
}

impl Store {
    /// Opens the store, and makes it where there is none.
    pub(crate) async fn open(path: &Path) -> Result<Self> {
        if let Some(dir) = path.parent() {
            tokio::fs::create_dir_all(dir).await.map_err(|error| unusable(path, &error.to_string()))?;
        }
        let options = SqliteConnectOptions::from_str("sqlite:")
            .map_err(|error| unusable(path, &error.to_string()))?
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY);
        let pool = connect(options).await.map_err(|error| unusable(path, &error.to_string()))?;
        let store = Self { pool, path: path.to_owned() };
        store.migrate().await?;
        Ok(store)
    }

    async fn migrate(&self) -> Result<()> {
        // Two controllers may meet here for the first time: an immediate transaction lets one of them go first.
        let mut connection = self.pool.acquire().await.map_err(|error| self.failed(&error))?;
        let made = async {
            connection.execute("BEGIN IMMEDIATE").await?;
            let row = connection.fetch_one("PRAGMA user_version").await?;
            let version: i64 = row.try_get(0)?;
            let missing = match version {
                0 => Some(SCHEMA),
                1 => Some(TO_SECOND),
                _ => None,
            };
            if let Some(missing) = missing {
                connection.execute(missing).await?;
            }
            connection.execute("COMMIT").await?;
            Ok::<i64, sqlx::Error>(version)
        };
        match made.await {
            Ok(0..=SCHEMA_VERSION) => Ok(()),
            Ok(newer) => Err(unusable(&self.path, &format!("it was written by a newer kvm-clone (schema {newer})"))),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// What running operations keep beside this journal.
    pub(crate) fn place(&self) -> Place {
        Place::beside(&self.path)
    }

    /// Writes a new operation down, as running.
    pub(crate) async fn begin(&self, new: &NewOperation) -> Result<()> {
        let insert = sqlx::query(
            "INSERT INTO operation (id, type, status, source_host, dest_host, vm_name, new_vm_name, created, plan, resume) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(new.id.to_string())
        .bind(new.kind.word())
        .bind(Status::Running.word())
        .bind(&new.source_host)
        .bind(&new.dest_host)
        .bind(&new.vm_name)
        .bind(&new.new_vm_name)
        .bind(Timestamp::now().to_string())
        .bind(&new.plan)
        .bind(&new.resume);
        insert.execute(&self.pool).await.map_err(|error| self.failed(&error))?;
        // An operation does not fail because old ones are remembered for longer.
        if let Err(error) = self.forget_old().await {
            tracing::warn!(%error, "old operations could not be forgotten");
        }
        Ok(())
    }

    /// Forgets what ended long ago. The numbers of rows rise, as operations are written down.
    async fn forget_old(&self) -> sqlx::Result<()> {
        let old = "rowid <= (SELECT max(rowid) FROM operation) - ? AND status IN ('completed', 'failed', 'cancelled')";
        let steps = format!("DELETE FROM step WHERE operation IN (SELECT id FROM operation WHERE {old})");
        let mut transaction = self.pool.begin().await?;
        for forget in [steps, format!("DELETE FROM operation WHERE {old}")] {
            QueryBuilder::<Sqlite>::new(forget).build().bind(REMEMBERED).execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    /// Writes marks of steps down, in this order: all of them are there afterwards, or none.
    pub(crate) async fn mark(&self, operation: Uuid, marks: &[(Step, Mark)]) -> Result<()> {
        let mut insert = QueryBuilder::<Sqlite>::new("INSERT INTO step (operation, step, mark, time) ");
        insert.push_values(marks, |mut row, (step, mark)| {
            row.push_bind(operation.to_string()).push_bind(step.word()).push_bind(mark.word());
            row.push_bind(Timestamp::now().to_string());
        });
        insert.build().execute(&self.pool).await.map_err(|error| self.failed(&error))?;
        Ok(())
    }

    /// Writes down how an operation ended; what it would be finished, undone or gone on with by is kept no longer where that is
    /// its end for good. One that this store does not know (another controller's, found by `recover`) is no error.
    pub(crate) async fn end(&self, operation: Uuid, status: Status, outcome: &str) -> Result<()> {
        let kept = if status.is_final() { ", plan = '{}', resume = NULL" } else { "" };
        QueryBuilder::<Sqlite>::new(format!(
            "UPDATE operation SET status = ?, ended = ?, outcome = ?{kept} WHERE id = ?"
        ))
        .build()
        .bind(status.word())
        .bind(Timestamp::now().to_string())
        .bind(outcome)
        .bind(operation.to_string())
        .execute(&self.pool)
        .await
        .map_err(|error| self.failed(&error))?;
        Ok(())
    }

    /// Writes down that an operation ended with an error, and as what: nothing of it is left, or something is.
    pub(crate) async fn fail(&self, operation: Uuid, status: Status, error: &Error) -> Result<()> {
        self.end(operation, status, &serde_json::to_string(error).unwrap_or_default()).await
    }

    /// Writes down that nothing is left of an operation, with why: in one, since somebody may be waiting for how it ended.
    pub(crate) async fn undone(&self, operation: Uuid, why: Undone<'_>) -> Result<()> {
        match why {
            Undone::Recovered => self.end(operation, Status::Failed, RECOVERED).await,
            Undone::GivenUp(error) if error.code == Code::Cancelled => {
                self.fail(operation, Status::Cancelled, error).await
            }
            Undone::GivenUp(error) => self.fail(operation, Status::Failed, error).await,
        }
    }

    /// An operation, if this store knows it.
    pub(crate) async fn find(&self, operation: Uuid) -> Result<Option<Found>> {
        let row = sqlx::query("SELECT status, resume FROM operation WHERE id = ?")
            .bind(operation.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(|error| self.failed(&error))?;
        let Some(row) = row else { return Ok(None) };
        let found = record::found(&row).map_err(|error| unusable(&self.path, &error.message))?;
        Ok(Some(found))
    }

    /// Writes down that an interrupted operation goes on, from its first step.
    pub(crate) async fn resume(&self, operation: Uuid) -> Result<()> {
        let written = async {
            let mut transaction = self.pool.begin().await?;
            sqlx::query("UPDATE operation SET status = ?, ended = NULL, outcome = NULL WHERE id = ?")
                .bind(Status::Running.word())
                .bind(operation.to_string())
                .execute(&mut *transaction)
                .await?;
            sqlx::query("INSERT INTO step (operation, step, mark, time) VALUES (?, ?, ?, ?)")
                .bind(operation.to_string())
                .bind(Step::Mark.word())
                .bind(Mark::Resumed.word())
                .bind(Timestamp::now().to_string())
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await
        };
        written.await.map_err(|error: sqlx::Error| self.failed(&error))
    }

    /// Operations that this store thinks are running or interrupted and that have this host as their target.
    pub(crate) async fn unfinished(&self, dest_host: &str) -> Result<Vec<Uuid>> {
        let rows = sqlx::query("SELECT id FROM operation WHERE dest_host = ? AND status IN (?, ?)")
            .bind(dest_host)
            .bind(Status::Running.word())
            .bind(Status::Interrupted.word())
            .fetch_all(&self.pool)
            .await
            .map_err(|error| self.failed(&error))?;
        Ok(rows.iter().filter_map(|row| row.try_get::<String, _>(0).ok()?.parse().ok()).collect())
    }

    /// The machine that tells whether an operation was committed, where its records do not.
    pub(crate) async fn doubtful(&self, operation: Uuid) -> Result<Option<Uuid>> {
        if !self.trail(operation).await?.may_be_committed() {
            return Ok(None);
        }
        let row = sqlx::query("SELECT plan ->> 'new_uuid' FROM operation WHERE id = ?").bind(operation.to_string());
        let row = row.fetch_one(&self.pool).await.map_err(|error| self.failed(&error))?;
        Ok(row.try_get::<Option<String>, _>(0).ok().flatten().and_then(|uuid| uuid.parse().ok()))
    }

    /// Closes an operation of which its target knows nothing any more: one that was committed only lacks the word that it
    /// was, any other made nothing or was undone. Where the records leave it open, the machine tells.
    pub(crate) async fn close_forgotten(&self, operation: Uuid, told: Told, undone: Undone<'_>) -> Result<()> {
        let trail = self.trail(operation).await?;
        if trail.is_committed() || told == Told::Stands {
            return self.end(operation, Status::Completed, RECOVERED).await;
        }
        if told == Told::Another {
            return self.fail(operation, Status::Failed, &untold()).await;
        }
        self.undone(operation, undone).await
    }

    /// How far an operation went.
    async fn trail(&self, operation: Uuid) -> Result<Trail> {
        let rows = sqlx::query("SELECT step, mark FROM step WHERE operation = ? ORDER BY number")
            .bind(operation.to_string())
            .fetch_all(&self.pool)
            .await
            .map_err(|error| self.failed(&error))?;
        let words = |row: &SqliteRow| Ok((row.try_get::<String, _>(0)?, row.try_get::<String, _>(1)?));
        let records: Vec<(String, String)> =
            rows.iter().map(words).collect::<sqlx::Result<_>>().map_err(|error| self.failed(&error))?;
        Trail::read(records.iter().map(|(step, mark)| (step.as_str(), mark.as_str())))
            .map_err(|error| unusable(&self.path, &error.message))
    }

    /// Waits until everything is on disk and closes.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    fn failed(&self, error: &sqlx::Error) -> Error {
        unusable(&self.path, &error.to_string())
    }
}

/// Where neither journal nor target tell what became of an operation.
fn untold() -> Error {
    Error::conflict(
        "its controller was gone while the machine was defined, somebody else recovered it, and the machine \
         is not as it would have defined it: whether it was completed is not known here",
    )
    .help("Look at the machine at the target: kvm-clone list HOST shows what it is a replica of")
}

fn unusable(path: &Path, why: &str) -> Error {
    Error::new(Code::Configuration, format!("the journal cannot be used: {why}"))
        .with("path", path.display())
        .help("Check the path, its permissions and its space; state.url in the configuration names another place")
}
