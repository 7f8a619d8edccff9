//! Operations as the journal has them, to be looked at.

use kvm_clone_core::journal::{IdPart, Status};
use kvm_clone_core::{Error, Result};
use serde::de::DeserializeOwned;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};
use uuid::Uuid;

use super::{Found, Store, unusable};
use crate::outcome::OperationType;

/// So many operations that have ended are shown where not all are asked for.
const RECENT: u32 = 20;

/// Which operations are looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Which<'a> {
    /// Those whose end is not written.
    Unended,
    /// These, and the last ones that ended.
    Recent,
    /// All of them.
    All,
    /// Those that this part of an id may mean.
    Named(&'a IdPart),
}

/// What is written down of one.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) id: Uuid,
    pub(crate) kind: OperationType,
    pub(crate) status: Status,
    pub(crate) source_host: String,
    pub(crate) dest_host: String,
    pub(crate) vm_name: String,
    pub(crate) new_vm_name: String,
    pub(crate) created: String,
    /// When its first step was begun.
    pub(crate) started: Option<String>,
    pub(crate) ended: Option<String>,
    /// A result or an error, as JSON.
    pub(crate) outcome: Option<String>,
}

const COLUMNS: &str = "SELECT id, type, status, source_host, dest_host, vm_name, new_vm_name, created, \
     (SELECT time FROM step WHERE operation = operation.id ORDER BY number LIMIT 1) AS started, ended, outcome \
     FROM operation ";
const ENDED: &str = "status IN ('completed', 'failed', 'cancelled')";

impl Store {
    /// These operations, the newest first. Ids are compared for equality only: their order is that of the journal.
    pub(crate) async fn records(&self, which: Which<'_>) -> Result<Vec<Record>> {
        let mut query = QueryBuilder::<Sqlite>::new(COLUMNS);
        match which {
            Which::Unended => query.push("WHERE NOT ").push(ENDED),
            Which::Recent => query
                .push("WHERE NOT ")
                .push(ENDED)
                .push(" OR rowid IN (SELECT rowid FROM operation WHERE ")
                .push(ENDED)
                .push(" ORDER BY rowid DESC LIMIT ")
                .push_bind(RECENT)
                .push(")"),
            Which::All => &mut query,
            // An id part holds no character that means something to LIKE.
            Which::Named(part) => query
                .push("WHERE id LIKE ")
                .push_bind(format!("{part}%"))
                .push(" OR id LIKE ")
                .push_bind(format!("%{part}")),
        };
        query.push(" ORDER BY rowid DESC");
        let rows = query.build().fetch_all(&self.pool).await.map_err(|error| self.failed(&error))?;
        rows.iter().map(read).collect::<Result<_>>().map_err(|error| unusable(&self.path, &error.message))
    }

    /// One operation; none where this journal does not know it.
    pub(crate) async fn record(&self, operation: Uuid) -> Result<Option<Record>> {
        Ok(self.records(Which::Named(&operation.into())).await?.pop())
    }
}

fn read(row: &SqliteRow) -> Result<Record> {
    Ok(Record {
        id: word(row, "id")?,
        kind: word(row, "type")?,
        status: word(row, "status")?,
        source_host: column(row, "source_host")?,
        dest_host: column(row, "dest_host")?,
        vm_name: column(row, "vm_name")?,
        new_vm_name: column(row, "new_vm_name")?,
        created: column(row, "created")?,
        started: column(row, "started")?,
        ended: column(row, "ended")?,
        outcome: column(row, "outcome")?,
    })
}

/// What going on with an operation needs of its row.
pub(super) fn found(row: &SqliteRow) -> Result<Found> {
    Ok(Found { status: word(row, "status")?, resume: column(row, "resume")? })
}

fn column<'r, T: sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>>(row: &'r SqliteRow, name: &str) -> Result<T> {
    row.try_get(name).map_err(|error| Error::internal(error.to_string()))
}

/// A column that holds one of the words that a type has.
fn word<T: DeserializeOwned>(row: &SqliteRow, name: &str) -> Result<T> {
    let text: String = column(row, name)?;
    serde_json::from_value(text.clone().into())
        .map_err(|_| Error::internal(format!("its column {name} says {text:?}, which it cannot")))
}
