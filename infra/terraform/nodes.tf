data "aws_iam_policy_document" "node_trust" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

# A node joins, has addresses and pulls images. Pods do not get these rights: they cannot reach the node's metadata
# (http_put_response_hop_limit) and have rights of their own (identity.tf).
resource "aws_iam_role" "node" {
  name               = "${local.name}-node"
  assume_role_policy = data.aws_iam_policy_document.node_trust.json
}

resource "aws_iam_role_policy_attachment" "node" {
  for_each = toset(["AmazonEKSWorkerNodePolicy", "AmazonEKS_CNI_Policy", "AmazonEC2ContainerRegistryPullOnly"])

  role       = aws_iam_role.node.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/${each.value}"
}

locals {
  cpu_pools = {
    system = {
      capacity_type  = "ON_DEMAND"
      instance_types = [var.system_instance_type]
      disk_gib       = 200
      min            = var.system_nodes
      max            = var.system_nodes + 1
      taints         = []
    }
    cpu = {
      capacity_type  = "ON_DEMAND"
      instance_types = [var.cpu_instance_type]
      disk_gib       = var.cpu_disk_gib
      min            = 0
      max            = var.cpu_nodes_max
      taints         = []
    }
    cpu-spot = {
      capacity_type  = "SPOT"
      instance_types = var.spot_instance_types
      disk_gib       = var.cpu_disk_gib
      min            = 0
      max            = var.spot_nodes_max
      taints         = [{ key = "mmbert.dev/spot", value = "true", effect = "NO_SCHEDULE" }]
    }
  }
}

resource "aws_launch_template" "cpu" {
  for_each = local.cpu_pools

  name                   = "${local.name}-${each.key}"
  update_default_version = true

  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_type           = "gp3"
      volume_size           = each.value.disk_gib
      iops                  = 6000
      throughput            = 500
      encrypted             = true
      kms_key_id            = aws_kms_key.main.arn
      delete_on_termination = true
    }
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  tag_specifications {
    resource_type = "instance"
    tags          = { Name = "${local.name}-${each.key}" }
  }
}

# Apart from the pools that come and go: addons wait for it.
resource "aws_eks_node_group" "system" {
  cluster_name    = aws_eks_cluster.main.name
  node_group_name = "system"
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = [for subnet in aws_subnet.private : subnet.id]
  ami_type        = "AL2023_x86_64_STANDARD"
  capacity_type   = local.cpu_pools.system.capacity_type
  instance_types  = local.cpu_pools.system.instance_types
  labels          = { "mmbert.dev/pool" = "system" }

  scaling_config {
    desired_size = local.cpu_pools.system.min
    min_size     = local.cpu_pools.system.min
    max_size     = local.cpu_pools.system.max
  }

  update_config {
    max_unavailable = 1
  }

  node_repair_config {
    enabled = true
  }

  launch_template {
    id      = aws_launch_template.cpu["system"].id
    version = aws_launch_template.cpu["system"].latest_version
  }

  depends_on = [aws_iam_role_policy_attachment.node, aws_eks_addon.vpc_cni]
}

resource "aws_eks_node_group" "cpu" {
  for_each = { for name, pool in local.cpu_pools : name => pool if name != "system" }

  cluster_name    = aws_eks_cluster.main.name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = [for subnet in aws_subnet.private : subnet.id]
  ami_type        = "AL2023_x86_64_STANDARD"
  capacity_type   = each.value.capacity_type
  instance_types  = each.value.instance_types
  labels          = { "mmbert.dev/pool" = each.key }
  # The autoscaler makes a node of a pool without nodes up from the instance type, and that has no disk of its own. Less
  # than the volume: the kubelet keeps a tenth free.
  tags = { "k8s.io/cluster-autoscaler/node-template/resources/ephemeral-storage" = "${floor(each.value.disk_gib * 0.85)}Gi" }

  scaling_config {
    desired_size = each.value.min
    min_size     = each.value.min
    max_size     = each.value.max
  }

  update_config {
    max_unavailable_percentage = 33
  }

  node_repair_config {
    enabled = true
  }

  dynamic "taint" {
    for_each = each.value.taints
    content {
      key    = taint.value.key
      value  = taint.value.value
      effect = taint.value.effect
    }
  }

  launch_template {
    id      = aws_launch_template.cpu[each.key].id
    version = aws_launch_template.cpu[each.key].latest_version
  }

  # The cluster's autoscaler says how many there are.
  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [aws_iam_role_policy_attachment.node, aws_eks_addon.vpc_cni]
}

# H100. One zone, one placement group, every network card with an EFA device.
resource "aws_placement_group" "h100" {
  name     = "${local.name}-h100"
  strategy = "cluster"
}

# EFA wants all traffic within the group allowed both ways, by the group itself.
resource "aws_security_group" "efa" {
  name        = "${local.name}-efa"
  description = "EFA traffic among H100 nodes"
  vpc_id      = aws_vpc.main.id
  tags        = { Name = "${local.name}-efa" }
}

resource "aws_vpc_security_group_ingress_rule" "efa" {
  security_group_id            = aws_security_group.efa.id
  description                  = "From H100 nodes"
  ip_protocol                  = "-1"
  referenced_security_group_id = aws_security_group.efa.id
}

resource "aws_vpc_security_group_egress_rule" "efa" {
  security_group_id            = aws_security_group.efa.id
  description                  = "To H100 nodes"
  ip_protocol                  = "-1"
  referenced_security_group_id = aws_security_group.efa.id
}

locals {
  # p5.48xlarge as EC2's guide has it for the most bandwidth: IP on card 0, an EFA-only device on each of the 32 cards.
  h100_interfaces = concat(
    [
      { card = 0, device = 0, type = "interface" },
      { card = 0, device = 1, type = "efa-only" },
    ],
    [for card in range(1, 32) : { card = card, device = 0, type = "efa-only" }],
  )
  h100_reserved = var.h100_capacity != "on-demand"
}

resource "aws_launch_template" "h100" {
  name                   = "${local.name}-h100"
  update_default_version = true
  instance_type          = "p5.48xlarge"

  # The eight local disks become one file system for pods' scratch, images and logs.
  user_data = base64encode(<<-EOT
    MIME-Version: 1.0
    Content-Type: multipart/mixed; boundary="//"

    --//
    Content-Type: application/node.eks.aws

    apiVersion: node.eks.aws/v1alpha1
    kind: NodeConfig
    spec:
      instance:
        localStorage:
          strategy: RAID0
    --//--
  EOT
  )

  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_type           = "gp3"
      volume_size           = 200
      encrypted             = true
      kms_key_id            = aws_kms_key.main.arn
      delete_on_termination = true
    }
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  placement {
    group_name = aws_placement_group.h100.name
  }

  dynamic "instance_market_options" {
    for_each = var.h100_capacity == "block" ? [1] : []
    content {
      market_type = "capacity-block"
    }
  }

  dynamic "capacity_reservation_specification" {
    for_each = local.h100_reserved ? [1] : []
    content {
      capacity_reservation_target {
        capacity_reservation_id = var.h100_reservation_id
      }
    }
  }

  dynamic "network_interfaces" {
    for_each = local.h100_interfaces
    content {
      network_card_index    = network_interfaces.value.card
      device_index          = network_interfaces.value.device
      interface_type        = network_interfaces.value.type
      delete_on_termination = true
      security_groups       = [aws_security_group.efa.id, aws_eks_cluster.main.vpc_config[0].cluster_security_group_id]
    }
  }

  tag_specifications {
    resource_type = "instance"
    tags          = { Name = "${local.name}-h100" }
  }
}

resource "aws_eks_node_group" "h100" {
  count = var.h100_nodes > 0 ? 1 : 0

  cluster_name    = aws_eks_cluster.main.name
  node_group_name = "h100"
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = [aws_subnet.private[var.h100_zone].id]
  ami_type        = "AL2023_x86_64_NVIDIA"
  capacity_type   = var.h100_capacity == "block" ? "CAPACITY_BLOCK" : "ON_DEMAND"
  # nvidia.com/gpu.present: without node feature discovery NVIDIA's device plugin goes to nodes that say so.
  labels = { "mmbert.dev/pool" = "h100", "nvidia.com/gpu.present" = "true" }
  # As above; the local disks hold 27.9 TiB.
  tags = { "k8s.io/cluster-autoscaler/node-template/resources/ephemeral-storage" = "25000Gi" }

  scaling_config {
    desired_size = var.h100_nodes
    min_size     = var.h100_nodes
    max_size     = var.h100_nodes
  }

  update_config {
    max_unavailable = 1
  }

  node_repair_config {
    enabled = true
  }

  taint {
    key    = "nvidia.com/gpu"
    value  = "true"
    effect = "NO_SCHEDULE"
  }

  launch_template {
    id      = aws_launch_template.h100.id
    version = aws_launch_template.h100.latest_version
  }

  depends_on = [aws_iam_role_policy_attachment.node, aws_eks_addon.vpc_cni]
}
