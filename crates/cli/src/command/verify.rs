//! `kvm-clone verify`: disks compared with their digests, or with those of another machine.

use std::process::ExitCode;

use kvm_clone_core::{Code, Result};
use kvm_clone_engine::{Against, VerifyRequest, VerifyResult};
use serde::Serialize;

use crate::args::VerifyArgs;
use crate::exit;
use crate::interrupt;
use crate::render::{ErrorBody, Format, Progress, verify_report};
use crate::request;
use crate::session::Session;

/// The result as a document; where something differs, with that as an error.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    result: &'a VerifyResult,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorBody>,
}

/// Compares.
pub(crate) async fn run(args: &VerifyArgs, session: &Session) -> Result<ExitCode> {
    let host = request::host(&session.settings, &args.host);
    let other = request::against(args, &session.settings)?;
    let request = VerifyRequest {
        host: host.spec,
        machine: args.machine.clone(),
        against: other.as_ref().map(|(other, name)| (other.spec.clone(), name.clone())),
        full: args.full,
        checksum: args.checksum,
    };
    let client = session.client().await?;
    let progress = Progress::start(session.style, session.screen.clone());
    let verified = interrupt::unless_stopped(&session.interrupts, client.verify(&request, progress.events())).await;
    progress.end();
    let mut result = verified?;
    // The hosts as the user named them.
    result.host = host.name;
    if let (Against::Machine { host, .. }, Some((other, _))) = (&mut result.against, other) {
        *host = other.name;
    }
    let difference = result.difference();
    let document = Document { result: &result, error: difference.as_ref().map(ErrorBody::of) };
    session.output.data(&document, || verify_report(&result, session.output.paint))?;
    let Some(error) = difference else { return Ok(ExitCode::SUCCESS) };
    if session.output.format == Format::Text {
        session.output.side_error(&error);
    }
    Ok(exit::status(Code::Verification))
}
