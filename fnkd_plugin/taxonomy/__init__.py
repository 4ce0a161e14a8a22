"""Class names -> A(x): which classes are near which, decided by what they are called or by what a teacher confuses."""

from fnkd_plugin.taxonomy.confusions import groups_from_confusions, off_target_mass
from fnkd_plugin.taxonomy.files import write_groups
from fnkd_plugin.taxonomy.taxonomy import Taxonomy, neighbours_of, taxonomy_of

__all__ = ['Taxonomy', 'groups_from_confusions', 'neighbours_of', 'off_target_mass', 'taxonomy_of', 'write_groups']
