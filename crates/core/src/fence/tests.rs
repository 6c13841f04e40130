//! What is promised of both machines together is searched for in a model. Tables test the details of each.

mod controller;
mod model;
mod verifier;

use super::*;
