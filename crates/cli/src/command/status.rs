//! `kvm-clone status`: operations, from another terminal or on another day.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kvm_clone_core::Result;
use kvm_clone_core::journal::IdPart;
use kvm_clone_engine::{Operation, Operations, Shown};
use uuid::Uuid;

use crate::args::StatusArgs;
use crate::exit;
use crate::interrupt;
use crate::render::{Format, OperationView, operation_line, operation_text, operations_table};
use crate::session::Session;

/// How often it is looked for changes; controllers tell of themselves as often.
const LOOK: Duration = Duration::from_millis(500);
/// Lines for people about one operation come no more often, unless its status changes.
const BETWEEN_LINES: Duration = Duration::from_secs(2);

/// Shows operations, once or until they end.
pub(crate) async fn run(args: &StatusArgs, session: &Session) -> Result<ExitCode> {
    let operations = session.operations().await?;
    let shown = async {
        match (&args.id, args.follow) {
            (id, true) => Follow::new(&operations, session).run(id.as_ref()).await,
            (Some(id), false) => one(&operations.find(id).await?, session),
            (None, false) => list(&operations, args, session).await,
        }
    };
    let ended = interrupt::unless_stopped(&session.interrupts, shown).await;
    operations.close().await;
    ended
}

fn one(operation: &Operation, session: &Session) -> Result<ExitCode> {
    let output = &session.output;
    output.data(&OperationView::of(operation), || operation_text(operation, output.paint))?;
    Ok(ExitCode::SUCCESS)
}

async fn list(operations: &Operations, args: &StatusArgs, session: &Session) -> Result<ExitCode> {
    let shown = match (args.all, args.active) {
        (true, _) => Shown::All,
        (_, true) => Shown::Active,
        _ => Shown::Recent,
    };
    let all = operations.list(shown).await?;
    let views: Vec<OperationView> = all.iter().map(OperationView::of).collect();
    session.output.data(&views, || operations_table(&all, session.output.paint))?;
    Ok(ExitCode::SUCCESS)
}

/// Tells changes of operations as they come.
struct Follow<'a> {
    operations: &'a Operations,
    session: &'a Session,
    /// What was told last of each, and when.
    told: BTreeMap<Uuid, (Operation, Instant)>,
}

impl<'a> Follow<'a> {
    const fn new(operations: &'a Operations, session: &'a Session) -> Self {
        Self { operations, session, told: BTreeMap::new() }
    }

    /// Until the operation has ended; without one, until none runs.
    async fn run(mut self, id: Option<&IdPart>) -> Result<ExitCode> {
        loop {
            let now = match id {
                Some(id) => vec![self.operations.find(id).await?],
                None => self.all().await?,
            };
            for operation in &now {
                self.tell(operation)?;
            }
            if now.iter().any(Operation::is_active) {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            let failure = id.and_then(|_| now.first()?.failure());
            return Ok(failure.map_or(ExitCode::SUCCESS, |failure| exit::status(failure.code)));
        }
    }

    /// Those that run, and those that did when they were told of last: their end is told, too.
    async fn all(&self) -> Result<Vec<Operation>> {
        let mut now = self.operations.list(Shown::Active).await?;
        for (id, (before, _)) in &self.told {
            if before.is_active() && now.iter().all(|operation| operation.id != *id) {
                now.push(self.operations.find(&(*id).into()).await?);
            }
        }
        Ok(now)
    }

    fn tell(&mut self, operation: &Operation) -> Result<()> {
        let output = &self.session.output;
        if let Some((before, when)) = self.told.get(&operation.id) {
            let is_early = output.format == Format::Text && when.elapsed() < BETWEEN_LINES;
            if before == operation || (is_early && before.status == operation.status) {
                return Ok(());
            }
        }
        output.item(&OperationView::of(operation), || match operation.is_active() {
            true => operation_line(operation),
            false => operation_text(operation, output.paint),
        })?;
        self.told.insert(operation.id, (operation.clone(), Instant::now()));
        Ok(())
    }
}
