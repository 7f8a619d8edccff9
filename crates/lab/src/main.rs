//! Raises labs by hand, for the demo and for looking around.

fn main() {}
