//! Names: mesh names from istiod's name table, everything else from the host's resolvers.
