"""The executing side: claims builds, runs their stages in a sandbox, reports the verdict."""
