//! Stateright models of the shipped cores.
