//! The door room.
