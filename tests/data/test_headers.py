import pytest

from distkg.data.readers.headers import Ambiguous, column_order, columns_by_name


@pytest.mark.parametrize(
    ("header", "order"),
    [
        ("head,relation,tail", (0, 1, 2)),
        ("subject,relation,object", (0, 1, 2)),
        ("head,tail,relation", (0, 2, 1)),
        ("Tail,Relation,Head", (2, 1, 0)),
        ("# head,rel,tail", (0, 1, 2)),
        ("?s,?p,?o", (0, 1, 2)),
        ("h,r,t", (0, 1, 2)),
        ("from,rel,to", (0, 1, 2)),
        ("e1,rel,e2", (0, 1, 2)),
        ("x_id,relation,y_id", (0, 1, 2)),
        ("head_id,relation_id,tail_id", (0, 1, 2)),
        ("Head Entity,Relation Type,Tail Entity", (0, 1, 2)),
        ("source,metaedge,target", (0, 1, 2)),
        ("src,dst,edge_type", (0, 2, 1)),
        (":START_ID(Person),:END_ID(City),:TYPE", (0, 2, 1)),
        ("_start,_end,_type", (0, 2, 1)),
        ("node1,label,node2", (0, 1, 2)),
        ("subj,pred,obj", (0, 1, 2)),
        ("subject,edge,target", (0, 1, 2)),
        ('"source","interaction","target"', (0, 1, 2)),
        (",head,relation,tail", (1, 2, 3)),
        ("head,relation,tail,weight", (0, 1, 2)),
        ("id,subject,predicate,object,relation,knowledge_source", (1, 2, 3)),
        ("subject,predicate,object,subject_label,object_label", (0, 1, 2)),
        ("head,relation,tail,type", (0, 1, 2)),
        ("a,r,b", None),
        ("x,r,y", None),
        ("s,r,t", None),
        ("e1,r,e2", None),
        ("drug,relation,gene", None),
        ("relation,relation,relation", None),
    ],
)
def test_columns_by_their_names(header: str, order: tuple[int, int, int] | None) -> None:
    assert column_order(header.split(",")) == order


def test_several_columns_for_one_role_are_no_order() -> None:
    primekg = "relation,display_relation,x_index,x_id,x_type,x_name,x_source,y_index,y_id,y_type,y_name,y_source"
    assert columns_by_name(primekg.split(",")) == Ambiguous("head and tail", ("x_id", "x_name", "y_id", "y_name"))
    assert columns_by_name(["source", "target", "type", "label"]) == Ambiguous("relation", ("type", "label"))
    assert column_order(primekg.split(",")) is None
