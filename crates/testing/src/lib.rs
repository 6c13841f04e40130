//! What a test of Keywright stands on: a real control plane, an installation of Keywright in namespaces of its own,
//! the real program with a real ServiceAccount's rights, and faults between it and the API server.
//!
//! ```ignore
//! let installation = Installation::new("rotation").await;
//! let faults = FaultProxy::start(installation.control_plane).await;
//! let lost = faults.inject(Fault::After(Outcome::Reset), Nth(1), |request| request.is("POST", "secrets"));
//! let controller = installation.program("controller").through(&faults).start().await;
//! installation.tenant::<ApiKey>().create(&PostParams::default(), &api_key).await?;
//! lost.hit().await;
//! ```
//!
//! Every wait has a deadline and says what was last seen. A failed test prints the state of its installation and the
//! logs of its programs. Nothing outlives the test process, however it ends.

mod audit;
pub mod command;
mod control_plane;
mod faults;
mod installation;
mod policies;
mod printed;
mod program;
pub mod proxy;
pub mod wait;
mod webhook;

pub use audit::AuditedRequest;
pub use command::{output, project};
pub use control_plane::ControlPlane;
pub use faults::{ApiRequest, Fault, FaultProxy, Injection, Occurrence, Outcome};
pub use installation::{Credentials, Installation};
pub use program::{Memory, Program};
