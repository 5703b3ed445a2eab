# Rights of pods, by service account (EKS Pod Identity): a role each, with what its program does and no more. No pod holds
# a key of AWS.
data "aws_iam_policy_document" "pod_trust" {
  statement {
    actions = ["sts:AssumeRole", "sts:TagSession"]
    principals {
      type        = "Service"
      identifiers = ["pods.eks.amazonaws.com"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [local.account]
    }
    condition {
      test     = "ArnEquals"
      variable = "aws:SourceArn"
      values   = [aws_eks_cluster.main.arn]
    }
  }
}

locals {
  artifacts = aws_s3_bucket.main["artifacts"].arn
  mlflow    = aws_s3_bucket.main["mlflow"].arn
  logs      = aws_s3_bucket.main["logs"].arn

  # By the service account that gets it: namespace and name as in infra/kubernetes/base/accounts.yaml.
  pod_roles = {
    component = {
      namespace       = "mmbert"
      service_account = "mmbert-component"
      policy          = data.aws_iam_policy_document.component.json
    }
    orchestrator = {
      namespace       = "airflow"
      service_account = "mmbert-orchestrator"
      policy          = data.aws_iam_policy_document.orchestrator.json
    }
    airflow-scheduler = {
      namespace       = "airflow"
      service_account = "airflow-scheduler"
      policy          = data.aws_iam_policy_document.airflow_logs.json
    }
    airflow-api-server = {
      namespace       = "airflow"
      service_account = "airflow-api-server"
      policy          = data.aws_iam_policy_document.airflow_logs.json
    }
    mlflow = {
      namespace       = "mlflow"
      service_account = "mlflow"
      policy          = data.aws_iam_policy_document.mlflow.json
    }
    external-secrets = {
      namespace       = "external-secrets"
      service_account = "external-secrets"
      policy          = data.aws_iam_policy_document.external_secrets.json
    }
    cluster-autoscaler = {
      namespace       = "kube-system"
      service_account = "cluster-autoscaler"
      policy          = data.aws_iam_policy_document.cluster_autoscaler.json
    }
  }
}

resource "aws_iam_role" "pod" {
  for_each = local.pod_roles

  name               = "${local.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.pod_trust.json
}

resource "aws_iam_role_policy" "pod" {
  for_each = local.pod_roles

  name   = each.key
  role   = aws_iam_role.pod[each.key].id
  policy = each.value.policy
}

resource "aws_eks_pod_identity_association" "pod" {
  for_each = local.pod_roles

  cluster_name    = aws_eks_cluster.main.name
  namespace       = each.value.namespace
  service_account = each.value.service_account
  role_arn        = aws_iam_role.pod[each.key].arn
}

# Components read and write artifacts, and sweep what other attempts left. Old versions stay out of their reach.
data "aws_iam_policy_document" "component" {
  statement {
    actions   = ["s3:ListBucket", "s3:ListBucketMultipartUploads"]
    resources = [local.artifacts]
  }
  statement {
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    resources = ["${local.artifacts}/artifacts/*"]
  }
  statement {
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.main.arn]
  }
}

# Task pods look for done work, write fingerprints' links and their own logs.
data "aws_iam_policy_document" "orchestrator" {
  source_policy_documents = [
    data.aws_iam_policy_document.component.json,
    data.aws_iam_policy_document.airflow_logs.json,
  ]
}

data "aws_iam_policy_document" "airflow_logs" {
  statement {
    sid       = "ListLogs"
    actions   = ["s3:ListBucket"]
    resources = [local.logs]
    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["airflow/*"]
    }
  }
  statement {
    sid       = "Logs"
    actions   = ["s3:GetObject", "s3:PutObject"]
    resources = ["${local.logs}/airflow/*"]
  }
}

data "aws_iam_policy_document" "mlflow" {
  statement {
    actions   = ["s3:ListBucket"]
    resources = [local.mlflow]
  }
  statement {
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    resources = ["${local.mlflow}/*"]
  }
  statement {
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.main.arn]
  }
}

data "aws_iam_policy_document" "external_secrets" {
  statement {
    actions   = ["secretsmanager:GetSecretValue", "secretsmanager:DescribeSecret"]
    resources = ["arn:${data.aws_partition.current.partition}:secretsmanager:${var.region}:${local.account}:secret:mmbert/${var.environment}/*"]
  }
  statement {
    actions   = ["kms:Decrypt"]
    resources = [aws_kms_key.main.arn]
  }
}

data "aws_iam_policy_document" "cluster_autoscaler" {
  # Describing knows no resources.
  statement {
    actions = [
      "autoscaling:DescribeAutoScalingGroups",
      "autoscaling:DescribeAutoScalingInstances",
      "autoscaling:DescribeLaunchConfigurations",
      "autoscaling:DescribeScalingActivities",
      "autoscaling:DescribeTags",
      "ec2:DescribeImages",
      "ec2:DescribeInstanceTypes",
      "ec2:DescribeLaunchTemplateVersions",
      "ec2:GetInstanceTypesFromInstanceRequirements",
      "eks:DescribeNodegroup",
    ]
    resources = ["*"]
  }
  statement {
    actions   = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
    resources = ["*"]
    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/k8s.io/cluster-autoscaler/${local.name}"
      values   = ["owned"]
    }
  }
}

# The EBS driver is an addon and makes its association itself.
resource "aws_iam_role" "ebs" {
  name               = "${local.name}-ebs-csi"
  assume_role_policy = data.aws_iam_policy_document.pod_trust.json
}

resource "aws_iam_role_policy_attachment" "ebs" {
  role       = aws_iam_role.ebs.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/service-role/AmazonEBSCSIDriverPolicy"
}

# Names of the secrets; people put the values (docs/infrastructure.md), so that none is in terraform's state.
resource "aws_secretsmanager_secret" "main" {
  for_each = toset(["components", "mlflow", "airflow"])

  name       = "mmbert/${var.environment}/${each.key}"
  kms_key_id = aws_kms_key.main.arn
}
