"""Near classes A(x) of each class, from class names or from a teacher's confusions."""

from fnkd_plugin.taxonomy.confusions import groups_from_confusions, off_target_mass
from fnkd_plugin.taxonomy.files import write_groups
from fnkd_plugin.taxonomy.taxonomy import Taxonomy, taxonomy_of

__all__ = ['Taxonomy', 'groups_from_confusions', 'off_target_mass', 'taxonomy_of', 'write_groups']
