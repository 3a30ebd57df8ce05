//! The thread that keeps the leaves which clients have handed to us, and carries out what they call for.
