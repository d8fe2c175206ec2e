//! The learning rate over every kind of continuation: what is shown is what runs.
