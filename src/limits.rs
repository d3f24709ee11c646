//! Every bound and every interval, with its default and its reason, in one place.
