"""How far two judges, or a judge and people, agree on the same images (docs/agreement.md)."""
