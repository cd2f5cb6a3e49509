"""World 2: drawings of nameable subjects at any place and size in simple scenes, on no grid."""
