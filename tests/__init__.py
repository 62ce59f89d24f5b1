"""The tests. A package, so that test folders share helpers by absolute import."""
