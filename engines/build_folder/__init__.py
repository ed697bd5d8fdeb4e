"""The files of a build folder: names, manifest, step record, verification, signature, bundle."""
