//! Feels the application's pulse.
